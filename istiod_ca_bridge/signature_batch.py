"""Signatures that are asked for at the same time, made by one call.

A call to the HSM plugin costs this process more than all else that a certificate needs. While
calls are under way, what else is asked for gathers, and the next call takes all of it: nobody
waits for a batch to fill, and the busier the CA is, the fewer calls it makes.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sized

from istiod_ca_bridge.errors import KeyServiceUnavailableError

MAX_BATCH = 256
"""As many digests as the plugin takes in one call."""
_CALLS_UNDER_WAY = 2
"""One is answered while the HSM works on the other."""

Send = Callable[[list[bytes]], Awaitable[list[bytes]]]
"""Digests -> as many signatures, in their order."""


class SignatureBatches:
    """Gathers digests on one event loop."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._waiting: deque[tuple[bytes, asyncio.Future[bytes]]] = deque()
        self._calls: set[asyncio.Task[None]] = set()

    async def sign(self, digest: bytes) -> bytes:
        """Return the digest's signature; raises what its call raised."""
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting.append((digest, answer))
        if len(self._calls) < _CALLS_UNDER_WAY:
            call = asyncio.create_task(self._work())
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)
        return await answer

    async def _work(self) -> None:
        """Make calls until nobody waits."""
        while batch := self._next():
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

    def _next(self) -> list[tuple[bytes, asyncio.Future[bytes]]]:
        """Return who waits and has not given up, up to a batch."""
        batch: list[tuple[bytes, asyncio.Future[bytes]]] = []
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
