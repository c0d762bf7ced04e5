"""Gives out DEKs from the stock, and has the worker make more of them beside the calls.

At most one message to the worker is under way for all KEKs together. Who takes nothing from the
stock is answered by a call of the token, as if there were no stock.
"""

import asyncio
import time
from collections.abc import Awaitable
from typing import Protocol

import grpc

from hsm_plugin.admission import Lane
from hsm_plugin.bound_token import BoundToken
from hsm_plugin.dek_stock import LIFE_SECONDS, DekStock
from hsm_plugin.errors import HsmPluginError
from hsm_plugin.keys import KekCipher
from hsm_plugin.status import status_of

_LANE = Lane(b" stock")
"""A key id has no space. Making DEKs ahead takes turns with the calls, as one key's calls would."""
_BATCH = 64
_SECONDS = 2.0
_CLOSE_SECONDS = 1.0


class Breaker(Protocol):
    """Tells whether the token may be used."""

    @property
    def is_open(self) -> bool:
        """True while it may not."""


class Token(Protocol):
    """The token, as far as it is needed here."""

    @property
    def breaker(self) -> Breaker:
        """See TokenClient."""

    def bound(self, lane: Lane, deadline: float) -> BoundToken:
        """See TokenClient."""


class StockWitness(Protocol):
    """Who records what is made ahead and what is dropped."""

    def check(self) -> None:
        """Raise AuditFailedError when the use of a key would go unrecorded that may not."""

    def stocked(
        self, kek_id: bytes, made: int, code: grpc.StatusCode, seconds: float
    ) -> Awaitable[None] | None:
        """Take note of DEKs that were made ahead; they wait for what is returned."""

    def dropped(self, kek_id: bytes, count: int) -> None:
        """Take note of DEKs that nobody got."""


class DekSupply:
    """The DEKs made ahead. Lives on one event loop."""

    def __init__(
        self,
        stock: DekStock,
        token: Token,
        cipher: KekCipher,
        witness: StockWitness,
        *,
        is_on: bool = True,
    ) -> None:
        """`cipher`: that DEKs are wrapped with. Nothing is made ahead unless it `is_on`."""
        self._stock = stock
        self._token = token
        self._cipher = cipher
        self._witness = witness
        self._making: asyncio.Task[None] | None = None
        self._sweep: asyncio.TimerHandle | None = None
        self._is_on = is_on

    def take(self, kek_id: bytes) -> bytes | None:
        """Return a DEK made ahead; None: ask the token, and then call `asked`."""
        if not self._is_on or self._token.breaker.is_open:
            return None
        blob = self._stock.take(kek_id)
        if blob is not None:
            self.asked(kek_id)
        return blob

    def asked(self, kek_id: bytes) -> None:
        """Count a call that was answered, and have DEKs made if many such calls come."""
        if not self._is_on:
            return
        self._stock.ask(kek_id)
        wanted = self._stock.wanted(kek_id)
        if wanted and self._making is None and not self._token.breaker.is_open:
            making = self._make(kek_id, min(wanted, _BATCH))
            self._making = asyncio.get_running_loop().create_task(making)

    async def close(self) -> None:
        """Return when no DEK is made ahead or given out any more, and that is recorded."""
        self._is_on = False
        if self._making is not None:
            await asyncio.wait({self._making}, timeout=_CLOSE_SECONDS)
        if self._making is not None:
            self._making.cancel()
            await asyncio.wait({self._making})
        self._stock.clear()
        self._swept()  # the records of what was dropped come before the log's end

    async def _make(self, kek_id: bytes, count: int) -> None:
        begun = self._stock.begin()
        try:
            self._witness.check()
            made = await self._made(kek_id, count)
            self._stock.put(kek_id, made, begun)
        except HsmPluginError:  # of the token: recorded; of the record: then nothing is given out
            self._stock.forget(kek_id)
        finally:
            self._making = None
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(LIFE_SECONDS, self._swept)

    async def _made(self, kek_id: bytes, count: int) -> list[bytes]:
        """Return new DEKs once it is recorded that they were made."""
        started, made, code = time.monotonic(), list[bytes](), grpc.StatusCode.CANCELLED
        try:
            token = self._token.bound(_LANE, started + _SECONDS)
            made = await token.make_deks(kek_id, count, self._cipher)
            code = grpc.StatusCode.OK
        except HsmPluginError as error:
            code = status_of(error)
            raise
        finally:
            recorded = self._witness.stocked(kek_id, len(made), code, time.monotonic() - started)
        if recorded is not None:
            await recorded
        return made

    def _swept(self) -> None:
        """Drop what is too old, and tell what was dropped; again as long as there is anything."""
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        self._stock.expire()
        for kek_id, count in self._stock.dropped().items():
            self._witness.dropped(kek_id, count)
        if self._stock.count:
            self._sweep = asyncio.get_running_loop().call_later(LIFE_SECONDS, self._swept)
