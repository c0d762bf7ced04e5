"""SIGTERM ends a block as Ctrl-C does, so that what a block undoes at its end is undone."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


@contextmanager
def by_sigterm_too() -> Iterator[None]:
    """While inside, SIGTERM raises KeyboardInterrupt; for the main thread."""
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
