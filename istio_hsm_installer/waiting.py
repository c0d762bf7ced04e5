"""Waiting that says what for."""

import time
from collections.abc import Callable

from istio_hsm_installer.errors import WaitError

POLL_SECONDS = 0.1
TIMEOUT_SECONDS = 60.0


def wait_until(
    what: str,
    is_so: Callable[[], bool],
    *,
    seconds: float = TIMEOUT_SECONDS,
    poll_seconds: float = POLL_SECONDS,
    hint: str = "see the controllers' logs, then go on with --resume",
) -> None:
    """Return once it is so; WaitError names what was awaited."""
    ends = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() >= ends:
            raise WaitError(f"waited {seconds:g} s until {what}, and it was not", hint=hint)
        time.sleep(poll_seconds)
