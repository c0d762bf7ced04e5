"""A worker process as its bridge sees it: started, heard, asked, and gone."""

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from istiod_ca_bridge.worker_messages import (
    ASK_FOR_FIGURES,
    LONGEST_LINE,
    Ended,
    Figures,
    Health,
    Message,
    read_line,
)
from istiod_ca_bridge.worker_seat import WorkerSeat

_FIGURES_SECONDS = 2.0
_EXIT_SECONDS = 5.0


class WorkerHandle:
    """One start of a worker."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._serving = False
        self._heard = time.monotonic()
        self._asked: list[asyncio.Future[str]] = []

    @property
    def silent_seconds(self) -> float:
        """How long it has told nothing."""
        return time.monotonic() - self._heard

    def serves(self, within: float) -> bool:
        """Return whether it told lately that it could sign."""
        return self._serving and self.silent_seconds < within

    def send(self, number: signal.Signals) -> None:
        """Send a signal; one that is gone gets none."""
        self._process.send_signal(number)

    async def follow(self) -> tuple[Ended | None, str]:
        """Hear it until it is gone; return why no other should be started, and how it ended."""
        ended = None
        try:
            async for message in self._messages():
                if isinstance(message, Health):
                    self._serving = message.serving
                elif isinstance(message, Figures):
                    for asked in self._asked:
                        if not asked.done():
                            asked.set_result(message.text)
                    self._asked.clear()
                else:
                    ended = message
        finally:
            self._writer.close()
            code = await self._exit_code()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return ended, how

    async def figures(self) -> str:
        """Return its metrics; empty when it does not answer in time."""
        if self._writer.is_closing():
            return ""
        asked: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._asked.append(asked)
        with contextlib.suppress(OSError, TimeoutError):
            self._writer.write(ASK_FOR_FIGURES)
            async with asyncio.timeout(_FIGURES_SECONDS):
                return await asked
        return ""

    async def _messages(self) -> AsyncIterator[Message]:
        with contextlib.suppress(OSError, ValueError):  # a line that is too long or none of ours
            while line := await self._reader.readline():
                message = read_line(line)
                self._heard = time.monotonic()
                yield message

    async def _exit_code(self) -> int:
        """Wait for its end; who has hung up and stays is killed."""
        try:
            return await asyncio.to_thread(self._process.wait, _EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return await asyncio.to_thread(self._process.wait)


Launch = Callable[[int, int, int, int], Awaitable[WorkerHandle]]
"""Number, count, listener, shares -> a worker that was just started."""


async def launch(number: int, count: int, listener: int, shares: int) -> WorkerHandle:
    """Start a worker; OSError when the host gives no process."""
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            process = _started(WorkerSeat(number, count, listener, shares, theirs.fileno()))
        except BaseException:
            ours.close()
            raise
    ours.settimeout(0)
    reader, writer = await asyncio.open_unix_connection(sock=ours, limit=LONGEST_LINE)
    return WorkerHandle(process, reader, writer)


def _started(seat: WorkerSeat) -> subprocess.Popen[bytes]:
    """Start a fresh interpreter, not a fork: this process has threads.

    The environment is inherited, the arguments are numbers, and the folder it is started in is not
    looked into for modules.
    """
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "istiod_ca_bridge", "worker", *seat.arguments()],
        stdin=subprocess.DEVNULL,
        pass_fds=seat.descriptors(),
    )
