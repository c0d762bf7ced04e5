"""How often to tell of what anyone can cause: a burst, then one a second."""

import time
from collections.abc import Callable

_BURST = 20
_PER_SECOND = 1.0


class Throttle:
    """Lets some through and counts the rest."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._tokens = float(_BURST)
        self._at = monotonic()
        self._left_out = 0

    def admit(self) -> int | None:
        """Return how many were left out since the last that was let through; None: leave out."""
        now = self._monotonic()
        self._tokens = min(self._tokens + (now - self._at) * _PER_SECOND, _BURST)
        self._at = now
        if self._tokens < 1:
            self._left_out += 1
            return None
        self._tokens -= 1
        left_out, self._left_out = self._left_out, 0
        return left_out
