"""Whether calls are let through to the token, and when it is tried again."""

import random
from dataclasses import dataclass

from hsm_plugin.errors import HsmUnavailableError

FIRST_SECONDS = 0.25
LAST_SECONDS = 15.0
STABLE_SECONDS = 10.0
"""A connection that held this long is no reason to prefer another token."""
HELD_SECONDS = 2.0
"""After a connection that held this long, pauses start anew: a well HSM is not waited for."""
MAX_FAILURES = 5
"""Calls that may fail in a row before the token is taken for lost."""

_LEAST_RETRY_SECONDS = 0.05
_HINT = "try again after the pause that is told; the plugin reconnects by itself"


class Backoff:
    """Pauses between attempts: none, then doubled each time, less up to a half by chance."""

    def __init__(self) -> None:
        self._next = 0.0

    def pause(self) -> float:
        """Return the seconds to wait before the next attempt."""
        pause = self._next * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
        self._next = min(max(self._next * 2, FIRST_SECONDS), LAST_SECONDS)
        return pause

    def expect_trouble(self) -> None:
        """Have the next attempt wait too: the HSM asked for a pause."""
        self._next = max(self._next, FIRST_SECONDS)

    def held(self, seconds: float) -> None:
        """Start anew after a connection that lasted; one that broke at once changes nothing."""
        if seconds >= HELD_SECONDS:
            self._next = 0.0


@dataclass(slots=True)
class Breaker:
    """Open: calls fail at once, with the reason and the time of the next attempt."""

    token_label: str
    reason: str = "the plugin is starting"
    is_open: bool = True
    retry_at: float = 0.0
    """On the monotonic clock."""
    failures: int = 0

    def open(self, reason: str, retry_at: float) -> None:
        """Let no call through."""
        self.is_open, self.reason, self.retry_at = True, reason, retry_at

    def close(self) -> None:
        """Let calls through."""
        self.is_open, self.failures = False, 0

    def refuse(self, now: float) -> HsmUnavailableError:
        """Return what a call gets while the breaker is open."""
        return HsmUnavailableError(
            f'the token "{self.token_label}" is not connected: {self.reason}',
            hint=_HINT,
            retry_after_seconds=max(self.retry_at - now, _LEAST_RETRY_SECONDS),
        )

    def failed(self) -> bool:
        """Count a call that the token failed; return true when it is one too many."""
        self.failures += 1
        return self.failures >= MAX_FAILURES

    def succeeded(self) -> None:
        """Count a call that the token answered."""
        self.failures = 0
