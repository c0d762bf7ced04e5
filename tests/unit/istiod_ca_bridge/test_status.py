import asyncio
import contextlib
import json
from collections.abc import Callable, Mapping
from datetime import timedelta

import pytest

from istiod_ca_bridge.authority import Authority, authority
from istiod_ca_bridge.chain import checked_chain
from istiod_ca_bridge.conditions import Conditions, Kind
from istiod_ca_bridge.errors import ClusterUnavailableError
from istiod_ca_bridge.replica_report import (
    not_serving,
    not_trusting,
    parse_report,
    report_of,
)
from istiod_ca_bridge.status_publisher import StatusPublisher
from istiod_ca_bridge.status_record import Series, messages_of
from tests.support import pki
from tests.unit.istiod_ca_bridge.doubles import (
    NOW,
    ca_certificate,
    local_signer,
    pem,
    recorded_log,
)


class Sink:
    """The API server's part."""

    def __init__(self) -> None:
        self.events: dict[str, Series] = {}
        self.values: dict[str, str] = {}
        self.writes = 0
        self.error: ClusterUnavailableError | None = None

    async def post(self, series: Series) -> None:
        if self.error:
            raise self.error
        self.events[series.name] = series

    async def write(self, values: Mapping[str, str | None]) -> None:
        if self.error:
            raise self.error
        for key, value in values.items():
            if value is None:
                self.values.pop(key, None)
            else:
                self.values[key] = value
        self.writes += 1


class Desk:
    """Conditions and their publisher, looked at many times a second."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("istiod_ca_bridge.status_publisher._LOOK_SECONDS", 0.0)
        self.now = NOW
        self.time = 0.0
        self.leads = True
        self.serving: Authority | None = None
        self.sink = Sink()
        self.conditions = Conditions(lambda: self.now)
        self.log, self.lines = recorded_log()

    async def run_until(self, condition: Callable[[], bool]) -> None:
        publisher = StatusPublisher(
            "bridge-1",
            self.conditions,
            lambda: self.serving,
            self.sink,
            lambda: self.leads,
            lambda: self.now,
            self.log,
            lambda: self.time,
        )
        task = asyncio.create_task(publisher.run())
        try:
            async with asyncio.timeout(5):
                while not condition():
                    assert not task.done()
                    await asyncio.sleep(0)
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Desk:
    return Desk(monkeypatch)


def test_a_condition_keeps_the_time_of_its_last_change_of_status() -> None:
    moments = iter([NOW + timedelta(minutes=minute) for minute in range(9)])
    conditions = Conditions(lambda: next(moments))

    conditions.set(Kind.CHAIN, "Waiting", "a", status=False)
    conditions.set(Kind.CHAIN, "Refused", "b", status=False)
    [refused] = conditions.current()
    conditions.set(Kind.CHAIN, "Accepted", "c", status=True)
    [accepted] = conditions.current()

    assert refused.last_transition == NOW
    assert accepted.last_transition > NOW


def test_what_did_not_change_is_no_event() -> None:
    conditions = Conditions(lambda: NOW)
    for _ in range(3):
        conditions.set(Kind.READY, "Serving", "well", status=True)
    conditions.set(Kind.READY, "CannotSign", "the HSM is away", status=False)

    assert [(it.reason, it.is_warning) for it in conditions.take()] == [
        ("Serving", False),
        ("CannotSign", True),
    ]
    assert conditions.take() == ()


def test_that_there_is_no_rotation_is_no_news() -> None:
    conditions = Conditions(lambda: NOW)
    conditions.set(Kind.ROTATING, "Idle", "none", status=False)
    assert conditions.take() == ()


def test_events_while_nobody_takes_them_are_bounded() -> None:
    conditions = Conditions(lambda: NOW)
    for number in range(10_000):
        conditions.happened("Flap", str(number))
    taken = conditions.take()
    assert len(taken) < 1000
    assert taken[-1].message == "9999"


async def test_the_config_map_has_the_conditions_as_kubernetes_forms_them(desk: Desk) -> None:
    desk.conditions.set(Kind.CHAIN, "Refused", "not our key", status=False)

    await desk.run_until(lambda: bool(desk.sink.writes))

    assert json.loads(desk.sink.values["conditions.json"]) == [
        {
            "type": "ChainAccepted",
            "status": "False",
            "reason": "Refused",
            "message": "not our key",
            "lastTransitionTime": f"{NOW:%FT%TZ}",
        }
    ]
    assert desk.sink.values["cert-chain.pem"] == ""
    assert messages_of(desk.sink.values["conditions.json"]) == {"ChainAccepted": "not our key"}
    assert messages_of("{nonsense") == messages_of('[{"type": 1}]') == {}


async def test_a_follower_posts_events_and_no_config_map(desk: Desk) -> None:
    desk.leads = False
    desk.conditions.happened("KeySecretRestored", "it is back")

    await desk.run_until(lambda: bool(desk.sink.events))

    assert desk.sink.values == {}


def authority_now() -> Authority:
    signer, root = local_signer(), pki.root()
    chain = pem(ca_certificate(signer.public_key, root), root.certificate)
    return authority(checked_chain(chain, signer.public_key, NOW), signer)


async def test_each_replica_reports_what_it_serves_and_takes_it_back_at_its_end(
    desk: Desk,
) -> None:
    desk.leads = False
    desk.serving = authority_now()
    seen: list[str] = []

    def is_told() -> bool:
        seen.extend(desk.sink.values.values())
        return bool(seen)

    await desk.run_until(is_told)

    report = parse_report("bridge-1", seen[0])
    assert report == report_of("bridge-1", desk.serving.chain, NOW)
    assert desk.sink.values == {}


async def test_the_leader_keeps_a_copy_of_the_chain_that_serves(desk: Desk) -> None:
    desk.serving = authority_now()
    await desk.run_until(lambda: bool(desk.sink.writes))

    kept = desk.sink.values["cert-chain.pem"].encode()
    assert checked_chain(kept, desk.serving.signer.public_key, NOW) == desk.serving.chain


def test_a_replica_that_serves_otherwise_or_is_silent_or_reports_nonsense_is_named() -> None:
    old, new = authority_now().chain, authority_now().chain
    both = new.trusting(old.roots)
    reports = (
        report_of("fine", both, NOW),
        report_of("behind", old, NOW),
        report_of("silent", both, NOW - timedelta(minutes=3)),
        parse_report("spoilt", "{nonsense"),
    )
    assert [it.split(",")[0] for it in not_trusting(reports, both, NOW)] == [
        "replica behind",
        "replica silent",
        "replica spoilt",
    ]
    assert [it.split(",")[0] for it in not_serving(reports, both, NOW)] == [
        "replica behind",
        "replica silent",
        "replica spoilt",
    ]
    assert not_trusting(reports[:1], both, NOW) == not_serving(reports[:1], both, NOW) == ()


async def test_the_same_event_again_is_one_series(desk: Desk) -> None:
    rounds = 0

    def again() -> bool:
        nonlocal rounds
        if (
            len(desk.sink.events) == rounds == 0
            or next(iter(desk.sink.events.values())).count == rounds
        ):
            rounds += 1
            desk.now += timedelta(seconds=1)
            desk.conditions.happened("Refused", "not our key", is_warning=True)
        return rounds > 4

    await desk.run_until(again)

    [series] = desk.sink.events.values()
    assert series.count == 4
    assert series.last > series.happening.at


async def test_what_flaps_is_told_at_a_bounded_rate(desk: Desk) -> None:
    for number in range(100):
        desk.conditions.happened("Flap", str(number))
    await desk.run_until(lambda: len(desk.sink.events) >= 60)
    assert len(desk.sink.events) == 60


async def test_events_wait_while_the_api_server_is_away(desk: Desk) -> None:
    desk.sink.error = ClusterUnavailableError("away", hint="h")
    desk.conditions.happened("Refused", "not our key")
    looks = 0

    def come_back() -> bool:
        nonlocal looks
        looks += 1
        if looks > 10:
            desk.sink.error = None
        return bool(desk.sink.events)

    await desk.run_until(come_back)

    assert sum("status.not_published" in line for line in desk.lines) == 1


async def test_a_config_map_that_was_changed_by_hand_is_written_again(desk: Desk) -> None:
    def later() -> bool:
        if desk.sink.writes == 1:
            desk.sink.values["conditions.json"] = "tampered"
            desk.time += 21
        return desk.sink.writes == 2

    await desk.run_until(later)

    assert desk.sink.values["conditions.json"] == "[]"
