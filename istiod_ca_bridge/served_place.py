"""Where a process takes its callers from, and whom it tells how it is: alone, or one of several."""

import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

Accept = Callable[[socket.socket, Callable[[], int]], Awaitable[socket.socket]]
"""Listener and how many connections there are -> the next connection."""

Answering = Callable[
    [Callable[[], bool], Callable[[], bytes]], contextlib.AbstractAsyncContextManager[None]
]
"""Whether it serves, its figures -> tells them to who asks, meanwhile."""


@contextlib.asynccontextmanager
async def _nobody(
    _serving: Callable[[], bool], _figures: Callable[[], bytes]
) -> AsyncIterator[None]:
    yield


@dataclass(frozen=True, slots=True)
class ServedPlace:
    """What differs between a process that is the bridge, and a worker of one."""

    listener: Callable[[], socket.socket]
    """Returns the bound socket of CA_LISTEN."""

    accept: Accept | None = None
    """None: whatever comes is this process's."""

    answering: Answering = _nobody
