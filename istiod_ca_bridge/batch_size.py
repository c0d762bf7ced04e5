"""How many requests are worth waiting for, as learnt from how many came.

With so many callers that one is always about to ask, a larger batch costs nobody anything; with few
it would be waited for in vain. Nobody tells how many they are, so a few more are asked for from
time to time, and less once it did not come.
"""

_CALM = 16
"""So many batches as large as wanted, before more are wanted after it was in vain."""


class BatchSize:
    """Learns from batch to batch, up to a most."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._wanted = 1
        self._calm = 0
        """How many more batches are to be as large as now."""

    @property
    def wanted(self) -> int:
        """How many are enough, so that nothing more is waited for."""
        return self._wanted

    def came(self, count: int) -> None:
        """Note that as many came as were wanted, or more."""
        self._wanted = max(self._wanted, min(count, self._most))
        if self._calm:
            self._calm -= 1
        else:
            self._wanted = min(self._wanted + self._wanted // 4 + 1, self._most)

    def fell_short(self, count: int) -> None:
        """Note that no more than so many came."""
        self._wanted = max(1, count)
        self._calm = _CALM
