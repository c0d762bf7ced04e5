"""The supply gives out what was recorded as made, nothing that the token would refuse."""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass, field

import grpc
import pytest

from hsm_plugin.admission import Lane
from hsm_plugin.breaker import Breaker
from hsm_plugin.dek_stock import MAX_DEKS, DekStock
from hsm_plugin.dek_supply import DekSupply
from hsm_plugin.errors import AuditFailedError, HsmPluginError, KeyNotFoundError
from hsm_plugin.keys import KekCipher

KEK = b"kek"


@dataclass
class Token:
    """Makes blobs with a number in them."""

    breaker: Breaker = field(default_factory=lambda: Breaker("token", is_open=False))
    asked: list[int] = field(default_factory=list)
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)
    error: HsmPluginError | None = None
    made: int = 0

    def bound(self, lane: Lane, deadline: float) -> "Token":
        assert lane.client == ""
        assert deadline > 0
        return self

    async def make_deks(self, kek_id: bytes, count: int, cipher: KekCipher) -> list[bytes]:
        assert (kek_id, cipher) == (KEK, KekCipher.GCM)
        self.asked.append(count)
        await self.may_answer.wait()
        if self.error:
            raise self.error
        self.made += count
        return [b"%d" % number for number in range(self.made - count, self.made)]


@dataclass
class Witness:
    """Keeps what it is told, and may be told to fail."""

    made: list[tuple[int, grpc.StatusCode]] = field(default_factory=list)
    lost: int = 0
    is_blind: bool = False
    is_full: bool = False

    def check(self) -> None:
        if self.is_blind:
            raise AuditFailedError("the audit log cannot be written")

    def stocked(
        self, kek_id: bytes, made: int, code: grpc.StatusCode, seconds: float
    ) -> Awaitable[None]:
        assert kek_id == KEK
        assert seconds >= 0
        self.made.append((made, code))
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.is_full:
            written.set_exception(AuditFailedError("the disk is full"))
        else:
            written.set_result(None)
        return written

    def dropped(self, kek_id: bytes, count: int) -> None:
        assert kek_id == KEK
        self.lost += count


@dataclass
class Site:
    """A supply and what is around it."""

    token: Token = field(default_factory=Token)
    witness: Witness = field(default_factory=Witness)
    is_on: bool = True

    def __post_init__(self) -> None:
        self.stock = DekStock(lambda: 1000.0)
        self.supply = DekSupply(
            self.stock,
            self.token,  # type: ignore[arg-type] # the part it uses
            KekCipher.GCM,
            self.witness,
            is_on=self.is_on,
        )
        self.token.may_answer.set()

    def ask_often(self) -> None:
        for _ in range(3 * MAX_DEKS):
            self.supply.asked(KEK)

    async def filled(self) -> None:
        """Return once DEKs were made."""
        self.ask_often()
        await settled()


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_deks_are_made_beside_the_calls_and_given_out_once() -> None:
    site = Site()
    await site.filled()
    taken = [site.supply.take(KEK) for _ in range(5)]
    assert taken == [b"0", b"1", b"2", b"3", b"4"]


async def test_one_message_is_under_way_at_a_time() -> None:
    site = Site()
    site.token.may_answer.clear()
    await site.filled()
    await site.filled()
    assert len(site.token.asked) == 1
    site.token.may_answer.set()
    await settled()
    site.ask_often()
    await settled()
    assert len(site.token.asked) == 2


async def test_what_is_made_and_what_nobody_took_is_recorded() -> None:
    site = Site()
    await site.filled()
    made = site.token.made
    assert made > 1
    assert site.witness.made == [(made, grpc.StatusCode.OK)]
    assert site.supply.take(KEK) is not None
    await site.supply.close()
    assert site.witness.lost == site.token.made - 1


async def test_nothing_is_given_out_while_the_breaker_is_open() -> None:
    site = Site()
    await site.filled()
    site.token.breaker.open("lost", 0.0)
    assert site.supply.take(KEK) is None
    asked = len(site.token.asked)
    await site.filled()
    assert len(site.token.asked) == asked


async def test_deks_that_were_made_during_a_loss_are_dropped_and_told() -> None:
    site = Site()
    site.token.may_answer.clear()
    await site.filled()
    site.stock.clear()
    site.token.may_answer.set()
    await settled()
    assert site.supply.take(KEK) is None
    await site.supply.close()
    assert site.witness.lost == site.token.made > 0


async def test_a_kek_that_is_gone_takes_its_stock_with_it() -> None:
    site = Site()
    await site.filled()
    site.token.error = KeyNotFoundError("no such KEK")
    while site.supply.take(KEK) is not None and len(site.token.asked) == 1:
        pass
    await settled()
    assert site.witness.made[-1] == (0, grpc.StatusCode.NOT_FOUND)
    assert site.supply.take(KEK) is None
    assert site.stock.count == 0


async def test_what_cannot_be_recorded_is_not_given_out() -> None:
    site = Site()
    site.witness.is_full = True
    await site.filled()
    assert site.token.made > 0
    assert site.supply.take(KEK) is None


async def test_no_kek_is_used_while_nothing_can_be_recorded() -> None:
    site = Site()
    site.witness.is_blind = True
    await site.filled()
    assert site.token.asked == []
    assert site.witness.made == []


async def test_switched_off_nothing_is_made_ahead() -> None:
    site = Site(is_on=False)
    await site.filled()
    assert site.token.asked == []
    assert site.supply.take(KEK) is None


async def test_a_message_that_hangs_at_the_end_is_given_up_and_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hsm_plugin.dek_supply._CLOSE_SECONDS", 0.01)
    site = Site()
    site.token.may_answer.clear()
    await site.filled()
    await site.supply.close()
    assert site.witness.made == [(0, grpc.StatusCode.CANCELLED)]
    await site.filled()
    assert len(site.token.asked) == 1
