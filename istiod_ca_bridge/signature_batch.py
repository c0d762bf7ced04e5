"""Signatures that are asked for at about the same time, made by one call.

A call costs this process and the plugin more than a signature by a fast token does. So a call waits
until as many ask as are to be expected (see `batch_size.py`), or nobody came for a moment, or it is
high time. Who comes alone is not kept waiting; when enough wait, a second call goes beside the
first, so that the HSM has work while one is answered.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sized

from istiod_ca_bridge.batch_size import BatchSize
from istiod_ca_bridge.errors import KeyServiceUnavailableError

MAX_BATCH = 256
"""As many digests as the plugin takes in one call."""
_CALLS_UNDER_WAY = 2
_WORTH_WAITING_FOR = 48
"""More in a call save little: its own cost is shared by as many already."""
PACE_SECONDS = 0.025
"""From one call's start to the next at the most; an HSM behind a network takes longer anyway."""
LULL_SECONDS = 0.003
"""When nobody came for so long, nobody is about to."""

Send = Callable[[list[bytes]], Awaitable[list[bytes]]]
"""Digests -> as many signatures, in their order."""

_Waiting = tuple[bytes, "asyncio.Future[bytes]"]


class SignatureBatches:
    """Gathers digests on one event loop."""

    def __init__(
        self,
        send: Send,
        pace_seconds: float = PACE_SECONDS,
        lull_seconds: float = LULL_SECONDS,
    ) -> None:
        self._send = send
        self._pace = pace_seconds
        self._lull = lull_seconds
        self._size = BatchSize(_WORTH_WAITING_FOR)
        self._waiting: deque[_Waiting] = deque()
        self._calls: set[asyncio.Task[None]] = set()
        self._due = 0.0
        """When the next call must go, on the monotonic clock."""

        self._timer: asyncio.TimerHandle | None = None

    async def sign(self, digest: bytes) -> bytes:
        """Return the digest's signature; raises what its call raised."""
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting.append((digest, answer))
        self._go_on()
        return await answer

    def _go_on(self) -> None:
        """Start the next call, or see to it that it will be started."""
        many = len(self._waiting)
        if not many or len(self._calls) >= _CALLS_UNDER_WAY:
            return
        if many >= self._size.wanted:
            self._size.came(many)
            self._start()
        elif not self._calls:
            if time.monotonic() >= self._due:
                self._start()
            elif self._timer is None:
                self._await_more()

    def _await_more(self) -> None:
        left = self._due - time.monotonic()
        self._timer = asyncio.get_running_loop().call_later(
            min(self._lull, left), self._on_time, len(self._waiting)
        )

    def _on_time(self, waited: int) -> None:
        """Start the call that was waited with, unless more are coming."""
        self._timer = None
        many = len(self._waiting)
        if not many or self._calls:
            return
        if many > waited and time.monotonic() < self._due:
            self._await_more()
            return
        self._size.fell_short(many)
        self._start()

    def _start(self) -> None:
        """Start a call for all who wait and have not given up, up to a batch."""
        batch = self._next()
        if not batch:
            return
        self._due = time.monotonic() + self._pace
        call = asyncio.create_task(self._call(batch))
        self._calls.add(call)
        call.add_done_callback(self._ended)

    def _ended(self, call: asyncio.Task[None]) -> None:
        self._calls.discard(call)
        self._go_on()

    async def _call(self, batch: list[_Waiting]) -> None:
        """Make one call."""
        try:
            signatures = _as_many(batch, await self._send([digest for digest, _ in batch]))
        except BaseException as error:
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(_reason(error))
            if not isinstance(error, Exception):
                raise
        else:
            for (_, answer), signature in zip(batch, signatures, strict=True):
                if not answer.done():
                    answer.set_result(signature)

    def _next(self) -> list[_Waiting]:
        """Return who waits and has not given up, up to a batch."""
        batch: list[_Waiting] = []
        while self._waiting and len(batch) < MAX_BATCH:
            entry = self._waiting.popleft()
            if not entry[1].done():
                batch.append(entry)
        return batch


def _as_many(batch: Sized, signatures: list[bytes]) -> list[bytes]:
    if len(signatures) != len(batch):
        raise KeyServiceUnavailableError(
            f"{len(signatures)} signatures came for {len(batch)} digests"
        )
    return signatures


def _reason(error: BaseException) -> Exception:
    if isinstance(error, Exception):
        return error
    return KeyServiceUnavailableError("the process is stopping")
