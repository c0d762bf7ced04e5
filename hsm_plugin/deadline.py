"""The deadline of the call that this thread serves, for the places where it may have to wait."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from hsm_plugin.errors import ExpiredError

_DEADLINE: ContextVar[float | None] = ContextVar("deadline", default=None)


@contextmanager
def until(moment: float) -> Iterator[None]:
    """While inside, the deadline is `moment`, on the monotonic clock; it must not have passed."""
    token = _DEADLINE.set(moment)
    try:
        remaining()
        yield
    finally:
        _DEADLINE.reset(token)


def remaining() -> float | None:
    """Return the seconds left, None without a deadline; ExpiredError when it has passed."""
    moment = _DEADLINE.get()
    if moment is None:
        return None
    left = moment - time.monotonic()
    if left <= 0:
        raise ExpiredError("the deadline passed before the token was touched")
    return left
