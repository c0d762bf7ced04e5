"""What is noticed of an API server that is away and of a clock that was set, and told thrice."""

import asyncio
import contextlib
from datetime import datetime, timedelta

import pytest

from istiod_ca_bridge.api_server_watch import WatchedLease
from istiod_ca_bridge.authority import Authority, authority
from istiod_ca_bridge.chain import CaChain
from istiod_ca_bridge.clock_watch import ClockWatch
from istiod_ca_bridge.condition_report import ConditionReport
from istiod_ca_bridge.conditions import Conditions, Kind
from istiod_ca_bridge.election import LeaseRecord
from istiod_ca_bridge.errors import (
    ClusterUnavailableError,
    ForbiddenByClusterError,
    NotServingError,
)
from istiod_ca_bridge.issue import issue
from istiod_ca_bridge.metrics import Metrics
from istiod_ca_bridge.policy import grant_server
from istiod_ca_bridge.readiness import Readiness
from istiod_ca_bridge.server_certificate import make_server_certificate
from tests.support import pki
from tests.unit.istiod_ca_bridge.doubles import NOW, ca_certificate, local_signer, recorded_log

AWAY = ClusterUnavailableError("the API server cannot be reached: MaxRetryError")
OTHERWISE_AWAY = ClusterUnavailableError("the API server answers 500 to get of leases")
FORBIDDEN = ForbiddenByClusterError("the API server answers 403 to get of leases")


class Told:
    """Conditions, and what log, metrics and Events say of them."""

    def __init__(self) -> None:
        self.now = NOW
        self.log, self.lines = recorded_log()
        self.metrics = Metrics()
        self.conditions = Conditions(lambda: self.now, ConditionReport(self.log, self.metrics))

    def events(self) -> list[tuple[str, bool]]:
        return [(it.reason, it.is_warning) for it in self.conditions.take()]

    def logged(self, text: str) -> int:
        return sum(text in line for line in self.lines)

    def has(self, sample: str) -> bool:
        return sample.encode() in self.metrics.exposition()


class Lease:
    def __init__(self, *answers: Exception | None) -> None:
        self._answers = iter(answers)

    async def read(self) -> LeaseRecord | None:
        answer = next(self._answers)
        if answer is not None:
            raise answer
        return None

    async def write(self, record: LeaseRecord, now: datetime, *, is_new_holder: bool) -> None:
        raise AssertionError((record, now, is_new_holder))


async def watched(told: Told, *answers: Exception | None) -> None:
    lease = WatchedLease(Lease(*answers), told.conditions)
    for _ in answers:
        with contextlib.suppress(ClusterUnavailableError):
            await lease.read()


async def test_an_api_server_that_goes_and_comes_back_is_told_once_each() -> None:
    told = Told()

    await watched(told, None, AWAY, OTHERWISE_AWAY, AWAY, None, None)

    assert told.events() == [("ApiServerAway", True), ("Reachable", False)]
    assert told.logged("condition.changed {'type': 'ApiServerReachable', 'status': 'False'") == 1
    assert told.has('istiod_ca_bridge_condition{type="ApiServerReachable"} 1.0')
    assert told.has('istiod_ca_bridge_events_total{reason="ApiServerAway"} 1.0')


async def test_an_api_server_away_from_the_start_is_told_and_one_that_refuses_is_there() -> None:
    told = Told()
    await watched(told, AWAY)
    assert told.events() == [("ApiServerAway", True)]
    assert told.has('istiod_ca_bridge_condition{type="ApiServerReachable"} 0.0')

    told = Told()
    await watched(told, FORBIDDEN, None)
    assert told.events() == []
    assert told.has('istiod_ca_bridge_condition{type="ApiServerReachable"} 1.0')


async def watched_clock(told: Told, *jumps: timedelta) -> None:
    """Let a second pass by both clocks before each jump of one."""
    monotonic = 0.0
    pending = list(jumps)
    over = asyncio.Event()

    def read_monotonic() -> float:
        return monotonic

    def clock() -> datetime:
        nonlocal monotonic
        if not pending:
            over.set()
            return told.now
        monotonic += 1.0
        told.now += timedelta(seconds=1) + pending.pop(0)
        return told.now

    watch = ClockWatch(told.conditions, clock, told.log, monotonic=read_monotonic, look_seconds=0.0)
    task = asyncio.create_task(watch.run())
    async with asyncio.timeout(5):
        await over.wait()
    task.cancel()


async def test_a_clock_that_was_set_is_told_each_time_and_one_that_ntp_moves_is_not() -> None:
    told = Told()
    still, hours = timedelta(0), timedelta(hours=3)

    await watched_clock(told, still, timedelta(seconds=5), hours, still, -hours, still)

    assert told.events() == [("ClockJumped", True)] * 2
    assert [line for line in told.lines if "clock.jumped {'seconds': 10800" in line]
    assert [line for line in told.lines if "clock.jumped {'seconds': -10800" in line]
    assert told.has('istiod_ca_bridge_events_total{reason="ClockJumped"} 2.0')


def test_each_turn_of_a_condition_is_one_line() -> None:
    told = Told()
    for status in (False, False, True, True):
        told.conditions.set(Kind.KEY, f"It is {status}", "so", status=status)

    assert told.logged("condition.changed") == 2
    assert ["'status': 'True'" in line for line in told.lines] == [False, True]


def ca() -> Authority:
    root, signer = pki.root(valid_until=pki.MOMENT + timedelta(days=3650)), local_signer()
    chain = CaChain((ca_certificate(signer.public_key, root),), (root.certificate,))
    return authority(chain, signer)


@pytest.mark.parametrize(
    ("moment", "reason"),
    [
        (NOW, "Serving"),
        (NOW - timedelta(days=1), "NotYetValid"),
        (NOW + timedelta(days=4000), "Expired"),
    ],
)
async def test_by_a_clock_outside_the_ca_s_life_it_is_not_ready(
    moment: datetime, reason: str
) -> None:
    told, serving = Told(), ca()
    published: list[bool] = []
    seen = asyncio.Event()

    async def publish(ready: bool) -> None:  # noqa: FBT001 - the callback's one fact
        published.append(ready)
        seen.set()

    readiness = Readiness(lambda: serving, publish, lambda: moment, told.log, told.conditions)
    task = asyncio.create_task(readiness.watch())
    async with asyncio.timeout(5):
        await seen.wait()
    task.cancel()

    assert published == [reason == "Serving"]
    assert told.events() == [(reason, reason != "Serving")]


async def test_before_the_ca_s_life_nothing_is_signed() -> None:
    serving = ca()
    early = NOW - timedelta(days=1)
    grant = grant_server(
        local_signer().public_key,
        ("a.test",),
        timedelta(hours=1),
        now=early,
        ca_not_after=serving.not_after,
        serial=1,
    )

    with pytest.raises(NotServingError, match="not valid before"):
        await issue(serving.issuer, grant)


async def test_a_server_certificate_of_the_future_is_due_at_once_when_the_clock_is_right() -> None:
    ahead = NOW + timedelta(days=3)

    made = await make_server_certificate(ca(), ("a.test",), ahead)

    assert made.due_in(ahead) == timedelta(hours=12)
    assert made.due_in(NOW) == timedelta(0)
