"""The server's end of one worker process: start it, ask it, and end it when it hangs.

Requests are pipelined; answers come in any order. When the process ends, however it ends, every
request under way fails with HsmUnavailableError, and the next worker is another object.
"""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from hsm_plugin import token_reference, wire
from hsm_plugin.errors import HsmPluginError, HsmUnavailableError, HungCallError
from hsm_plugin.gcm_iv import GcmIv
from hsm_plugin.keys import CbcLabels
from hsm_plugin.wire import Answer, Kind, Operation

_BUFFER_BYTES = 1 << 20
_EXIT_SECONDS = 3.0


class Loss(Enum):
    """What is gone, and with it what the way back is."""

    TOKEN = "token"  # noqa: S105 - a token is a device here
    """The module must be initialised again; it is expected to work at once."""
    HSM = "HSM"
    """As TOKEN, after a pause."""
    WORKER = "worker"
    """Another process is started."""


_LOSSES = {Kind.FAILED_TOKEN_LOST: Loss.TOKEN, Kind.FAILED_HSM_DOWN: Loss.HSM}


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What a worker is started with. No secret is among it: the worker reads the PIN file."""

    module: str
    token_label: str
    pin_file: Path
    state_dir: Path
    threads: int
    cbc_labels: CbcLabels = field(default_factory=CbcLabels)
    gcm_iv: GcmIv = GcmIv.AUTO

    @property
    def tokens(self) -> int:
        """How many tokens are tried in turn."""
        return len(token_reference.parse_list(self.token_label))

    def command(self, socket_number: int) -> list[str]:
        """Return the worker's command line."""
        return [
            *(sys.executable, "-m", "hsm_plugin.worker"),
            *("--socket", str(socket_number), "--parent", str(os.getpid())),
            *("--module", self.module, "--token-label", self.token_label),
            *("--pin-file", str(self.pin_file), "--state-dir", str(self.state_dir)),
            *("--threads", str(self.threads)),
            *("--key-label", self.cbc_labels.kek, "--hmac-label", self.cbc_labels.mac),
            *("--gcm-iv", self.gcm_iv.value),
        ]


@dataclass(slots=True)
class _Pending:
    """A request that the worker has not answered."""

    future: asyncio.Future[list[bytes]]
    overdue_at: float
    operation: Operation
    done: Callable[[], None] | None
    parts: list[bytes] = field(default_factory=list)


class WorkerProcess:
    """A running worker. All methods are called on the event loop."""

    def __init__(self, settings: WorkerSettings, on_loss: Callable[[Loss, str], None]) -> None:
        """Start the process. `on_loss` is told when the token, or the process, is gone."""
        self._loop = asyncio.get_running_loop()
        self._on_loss = on_loss
        self._pending: dict[int, _Pending] = {}
        self._number = 0
        self._outbox: deque[bytes] = deque()
        self._buffer = bytearray(wire.MAX_PACKET_BYTES)
        self._view = memoryview(self._buffer)
        self._ended: str | None = None
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            for end in (self._socket, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
            self._process = subprocess.Popen(
                settings.command(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        self._socket.settimeout(0)
        self._loop.add_reader(self._socket, self._read)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """True until the process has ended or was killed."""
        return self._ended is None

    @property
    def pending(self) -> int:
        """Requests that are not answered yet."""
        return len(self._pending)

    def ask(
        self,
        operation: Operation,
        fields: Sequence[bytes],
        *,
        deadline: float,
        limit_seconds: float,
        done: Callable[[], None] | None = None,
    ) -> asyncio.Future[list[bytes]]:
        """Return a future of the results, or of the error that the worker met.

        `limit_seconds`: an answer that takes longer means that the worker hangs. `done` is
        called when the worker is through with the request, even if nobody awaits it any more.
        """
        if self._ended is not None:
            raise HsmUnavailableError(self._ended)
        self._number += 1
        packet = wire.encode_request(self._number, deadline, operation, fields)
        future: asyncio.Future[list[bytes]] = self._loop.create_future()
        overdue_at = time.monotonic() + limit_seconds
        self._pending[self._number] = _Pending(future, overdue_at, operation, done)
        self._send(packet)
        return future

    def overdue(self, now: float) -> Operation | None:
        """Return an operation that should have been answered by now."""
        for entry in self._pending.values():
            if entry.overdue_at <= now:
                return entry.operation
        return None

    def kill(self, reason: str) -> None:
        """End the process at once; what is under way fails, what hangs with HungCallError."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)
        self._end(reason, hung_since=time.monotonic())

    async def close(self) -> None:
        """Return when the process has ended: by itself if it can, killed if it cannot."""
        self._end("the plugin is stopping")
        await self.reap(_EXIT_SECONDS)

    async def reap(self, seconds: float) -> int:
        """Return the exit code, negative for a signal, of a process that is about to end."""
        try:
            return await asyncio.to_thread(self._process.wait, seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return await asyncio.to_thread(self._process.wait)

    def _send(self, packet: bytes) -> None:
        if self._outbox:
            self._outbox.append(packet)
            return
        try:
            self._socket.send(packet)
        except BlockingIOError:
            self._outbox.append(packet)
            self._loop.add_writer(self._socket, self._flush)
        except OSError:
            self._worker_gone()

    def _flush(self) -> None:
        try:
            while self._outbox:
                self._socket.send(self._outbox[0])
                self._outbox.popleft()
        except BlockingIOError:
            return
        except OSError:
            self._worker_gone()
            return
        self._loop.remove_writer(self._socket)

    def _read(self) -> None:
        while self._ended is None:
            try:
                size = self._socket.recv_into(self._buffer)
            except BlockingIOError:
                return
            except OSError:
                size = 0
            if not size:
                self._worker_gone()
                return
            self._take(wire.decode_answer(self._view[:size]))

    def _take(self, answer: Answer) -> None:
        entry = self._pending[answer.number]
        if answer.kind is Kind.MORE:
            entry.parts += answer.fields
            return
        del self._pending[answer.number]
        if answer.kind is Kind.DONE:
            _finish(entry, [*entry.parts, *answer.fields] if entry.parts else answer.fields)
            return
        error = wire.decode_failure(answer)
        _finish(entry, error)
        if answer.kind in _LOSSES:
            self._on_loss(_LOSSES[answer.kind], str(error))

    def _worker_gone(self) -> None:
        self._end("the worker process ended; another one is started")

    def _end(self, reason: str, hung_since: float = 0.0) -> None:
        """Close the socket, fail what is under way, and tell of the loss: once."""
        if self._ended is not None:
            return
        self._ended = reason
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        self._outbox.clear()
        unanswered = list(self._pending.values())
        self._pending.clear()
        for entry in unanswered:
            kind = HungCallError if entry.overdue_at <= hung_since else HsmUnavailableError
            _finish(entry, kind(reason, hint="try again; a new worker starts"))
        self._on_loss(Loss.WORKER, reason)


def _finish(entry: _Pending, outcome: list[bytes] | HsmPluginError) -> None:
    if entry.done is not None:
        entry.done()
    if entry.future.done():
        return  # nobody waits any more
    if isinstance(outcome, HsmPluginError):
        entry.future.set_exception(outcome)
    else:
        entry.future.set_result(outcome)
