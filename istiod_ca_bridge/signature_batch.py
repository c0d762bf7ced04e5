"""Signatures that are asked for at about the same time, made by one call.

A call costs this process and the plugin more than a signature by a fast token does. So calls go one
after the other, some milliseconds apart, and each takes all that was asked for since the one
before. Who comes alone is not kept waiting; when many wait, a second call goes beside the first,
so that the HSM has work while one is answered.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sized

from istiod_ca_bridge.errors import KeyServiceUnavailableError

MAX_BATCH = 256
"""As many digests as the plugin takes in one call."""
_CALLS_UNDER_WAY = 2
WORTH_A_CALL = 8
"""When so many wait, they wait for no other call's end, nor for the pace."""
PACE_SECONDS = 0.008
"""From one call's start to the next; an HSM behind a network takes longer anyway."""

Send = Callable[[list[bytes]], Awaitable[list[bytes]]]
"""Digests -> as many signatures, in their order."""

_Waiting = tuple[bytes, "asyncio.Future[bytes]"]


class SignatureBatches:
    """Gathers digests on one event loop."""

    def __init__(self, send: Send, pace_seconds: float = PACE_SECONDS) -> None:
        self._send = send
        self._pace = pace_seconds
        self._waiting: deque[_Waiting] = deque()
        self._calls: set[asyncio.Task[None]] = set()
        self._next_start = 0.0
        self._timer: asyncio.TimerHandle | None = None

    async def sign(self, digest: bytes) -> bytes:
        """Return the digest's signature; raises what its call raised."""
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting.append((digest, answer))
        self._go_on()
        return await answer

    def _go_on(self) -> None:
        """Start the next call, or see to it that it will be started."""
        if not self._waiting or len(self._calls) >= _CALLS_UNDER_WAY:
            return
        if len(self._waiting) < WORTH_A_CALL:
            if self._calls:
                return
            loop = asyncio.get_running_loop()
            if loop.time() < self._next_start:
                if self._timer is None:
                    self._timer = loop.call_at(self._next_start, self._on_time)
                return
        call = asyncio.create_task(self._call())
        self._calls.add(call)
        call.add_done_callback(self._ended)

    def _on_time(self) -> None:
        self._timer = None
        self._go_on()

    def _ended(self, call: asyncio.Task[None]) -> None:
        self._calls.discard(call)
        self._go_on()

    async def _call(self) -> None:
        """Make one call for all who wait."""
        self._next_start = asyncio.get_running_loop().time() + self._pace
        batch = self._next()
        if not batch:
            return
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
