"""The worker's end of the line to its bridge: tells its health, answers with figures."""

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable

from istiod_ca_bridge.worker_messages import (
    ASK_FOR_FIGURES,
    Ended,
    Figures,
    Health,
    Message,
    line_of,
)

_TELL_SECONDS = 1.0
_LOOK_SECONDS = 0.1
"""How soon a change of health is told."""

_PR_SET_PDEATHSIG = 1


class WorkerChannel:
    """One socket; when the bridge's end closes, the bridge is dead and so is this process."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @contextlib.asynccontextmanager
    async def answering(
        self, serving: Callable[[], bool], figures: Callable[[], bytes]
    ) -> AsyncIterator[None]:
        """Tell and answer meanwhile."""
        tasks = [
            asyncio.create_task(self._tell_health(serving)),
            asyncio.create_task(self._answer(figures)),
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def tell(self, message: Message) -> None:
        """Send a message; a bridge that is gone hears none."""
        with contextlib.suppress(OSError):
            self._writer.write(line_of(message))
            await self._writer.drain()

    async def end(self, why: Ended) -> None:
        """Say why another start would not help, and hang up."""
        await self.tell(why)
        with contextlib.suppress(OSError):
            self._writer.close()
            await self._writer.wait_closed()

    async def _tell_health(self, serving: Callable[[], bool]) -> None:
        loop = asyncio.get_running_loop()
        told, at = None, 0.0
        while True:
            now = serving()
            if now is not told or loop.time() - at >= _TELL_SECONDS:
                told, at = now, loop.time()
                await self.tell(Health(now))
            await asyncio.sleep(_LOOK_SECONDS)

    async def _answer(self, figures: Callable[[], bytes]) -> None:
        while (line := await self._reader.readline()).endswith(b"\n"):
            if line == ASK_FOR_FIGURES:
                await self.tell(Figures(figures().decode()))
        os._exit(1)  # nobody is there to be told anything


async def open_channel(descriptor: int) -> WorkerChannel:
    """Return the channel on an inherited socket."""
    reader, writer = await asyncio.open_unix_connection(sock=socket.socket(fileno=descriptor))
    return WorkerChannel(reader, writer)


def die_with_bridge() -> None:
    """Have the kernel end this process when the thread ends that started it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
