"""When to renew, when to log in again, how long to wait: pure, the clock and the dice passed in.

Times are seconds of one monotonic clock.
"""

from dataclasses import dataclass

_RENEW_AT = 2 / 3
_JITTER = 0.1
_CAPPED_BELOW = 0.9


@dataclass(frozen=True, slots=True)
class Lease:
    """The life of one token."""

    starts: float
    seconds: float
    """0: the token never expires."""
    renewable: bool
    granted_seconds: float
    """What the login granted; a renewal that yields less has met the maximum TTL."""

    @property
    def expires(self) -> float:
        """Return when the token dies; infinity if never."""
        return self.starts + self.seconds if self.seconds else float("inf")

    def refresh_at(self, dice: float) -> float:
        """Return when to renew or log in: two thirds of the life, up to a tenth earlier.

        `dice` is uniform in [0, 1); it keeps a fleet from renewing in step.
        """
        if not self.seconds:
            return float("inf")
        return self.starts + self.seconds * _RENEW_AT * (1 - _JITTER * dice)

    def capped(self) -> bool:
        """Return whether the maximum TTL cut this lease short, so that soon only a login helps."""
        return 0 < self.seconds < self.granted_seconds * _CAPPED_BELOW

    def renewed(self, starts: float, seconds: float, *, renewable: bool) -> "Lease":
        """Return the lease after a renewal that began at `starts`."""
        return Lease(starts, seconds, renewable, self.granted_seconds)


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential backoff with full jitter, bounded on both sides."""

    base_seconds: float = 0.5
    cap_seconds: float = 60.0
    floor_seconds: float = 0.2

    def wait(self, failures: int, dice: float, retry_after_seconds: float | None = None) -> float:
        """Return how long to wait after the `failures`th failure in a row (from 1).

        Never less than the server's Retry-After, which counts up to ten minutes.
        """
        ceiling = min(self.cap_seconds, self.base_seconds * float(2 ** min(failures, 16)))
        asked = min(retry_after_seconds or 0.0, 600.0)
        return max(self.floor_seconds, ceiling * dice, asked)


def poll_wait(interval_seconds: float, dice: float) -> float:
    """Return how long to wait until the next poll: the interval, give or take a tenth."""
    return interval_seconds * (1 + _JITTER * (2 * dice - 1))
