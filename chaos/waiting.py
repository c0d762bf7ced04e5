"""Waiting for what must come."""

import time
from collections.abc import Callable

_POLL_SECONDS = 0.1


class ChaosError(Exception):
    """The run itself could not be carried out."""


def wait_until(true: Callable[[], bool], what: Callable[[], str], *, seconds: float = 60.0) -> None:
    """Return once it is true; ChaosError says what did not come."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise ChaosError(f"after {seconds:.0f} s still waiting for {what()}")
        time.sleep(_POLL_SECONDS)
