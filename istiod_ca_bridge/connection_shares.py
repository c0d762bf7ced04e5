"""Workers that accept from one socket take turns: who has the fewest connections goes first.

The kernel wakes whoever waits, and the first to come would take a whole burst. So each tells the
others in memory that all inherit how many it has, and gives way for some milliseconds to one that
has fewer; one that is stuck holds nobody up for longer.
"""

import asyncio
import mmap
import os
import socket
from collections.abc import Callable

_ABSENT = -1
_BYTES = 4
_GIVE_WAY_SECONDS = 0.001
_GIVE_WAY_TIMES = 4


def make_shares(count: int) -> int:
    """Return the descriptor of fresh memory for so many workers, none of whom accepts yet."""
    descriptor = os.memfd_create("istiod-ca-bridge")
    os.truncate(descriptor, count * _BYTES)
    shares = ConnectionShares(descriptor, count)
    for number in range(1, count + 1):
        shares.is_gone(number)
    return descriptor


class ConnectionShares:
    """How many connections each worker has."""

    def __init__(self, descriptor: int, count: int) -> None:
        self._memory = memoryview(mmap.mmap(descriptor, count * _BYTES)).cast("i")

    def tell(self, number: int, connections: int) -> None:
        """Say that a worker accepts, and has so many."""
        self._memory[number - 1] = connections

    def is_gone(self, number: int) -> None:
        """Say that a worker does not accept."""
        self._memory[number - 1] = _ABSENT

    def fewest(self) -> int | None:
        """Return the least that a worker has who accepts; None when nobody does."""
        return min((it for it in self._memory if it != _ABSENT), default=None)


class SharedAccept:
    """Accepts as one of several workers; as long as it does not serve, the others' are theirs."""

    def __init__(self, shares: ConnectionShares, number: int) -> None:
        self._shares = shares
        self._number = number
        self.serves: Callable[[], bool] = lambda: True

    async def accept(
        self, listener: socket.socket, connections: Callable[[], int]
    ) -> socket.socket:
        """Return the next connection that is this worker's."""
        try:
            while True:
                self._tell(connections())
                await _readable(listener)
                self._tell(connections())
                await self._give_way(connections)
                if not self.serves() and self._shares.fewest() is not None:
                    continue
                try:
                    accepted, _ = listener.accept()
                except BlockingIOError:
                    continue  # another was first
                self._tell(connections() + 1)
                return accepted
        except asyncio.CancelledError:
            self._shares.is_gone(self._number)
            raise

    def _tell(self, connections: int) -> None:
        if self.serves():
            self._shares.tell(self._number, connections)
        else:
            self._shares.is_gone(self._number)

    async def _give_way(self, connections: Callable[[], int]) -> None:
        """Wait a little while another who accepts has fewer, or this worker does not serve."""
        for _ in range(_GIVE_WAY_TIMES):
            fewest = self._shares.fewest()
            if fewest is None or (self.serves() and connections() <= fewest):
                return
            await asyncio.sleep(_GIVE_WAY_SECONDS)


async def _readable(listener: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    came: asyncio.Future[None] = loop.create_future()
    loop.add_reader(listener, _has_come, came)
    try:
        await came
    finally:
        loop.remove_reader(listener)


def _has_come(came: asyncio.Future[None]) -> None:
    if not came.done():
        came.set_result(None)
