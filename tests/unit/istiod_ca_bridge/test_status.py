import asyncio
import contextlib
import json
from collections.abc import Callable, Mapping
from datetime import timedelta

import pytest

from istiod_ca_bridge.conditions import Conditions, Kind
from istiod_ca_bridge.errors import ClusterUnavailableError
from istiod_ca_bridge.status_publisher import StatusPublisher
from istiod_ca_bridge.status_record import Series
from tests.unit.istiod_ca_bridge.doubles import NOW, recorded_log


class Sink:
    """The API server's part."""

    def __init__(self) -> None:
        self.events: dict[str, Series] = {}
        self.values: Mapping[str, str] = {}
        self.writes = 0
        self.error: ClusterUnavailableError | None = None

    async def post(self, series: Series) -> None:
        if self.error:
            raise self.error
        self.events[series.name] = series

    async def write(self, values: Mapping[str, str]) -> None:
        if self.error:
            raise self.error
        self.values = values
        self.writes += 1


class Desk:
    """Conditions and their publisher, looked at many times a second."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("istiod_ca_bridge.status_publisher._LOOK_SECONDS", 0.0)
        self.now = NOW
        self.time = 0.0
        self.leads = True
        self.sink = Sink()
        self.conditions = Conditions(lambda: self.now)
        self.log, self.lines = recorded_log()

    async def run_until(self, condition: Callable[[], bool]) -> None:
        publisher = StatusPublisher(
            self.conditions,
            lambda: "chain",
            self.sink,
            lambda: self.leads,
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
    assert desk.sink.values["cert-chain.pem"] == "chain"


async def test_a_follower_posts_events_and_no_config_map(desk: Desk) -> None:
    desk.leads = False
    desk.conditions.happened("KeySecretRestored", "it is back")

    await desk.run_until(lambda: bool(desk.sink.events))

    assert desk.sink.writes == 0


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
            desk.time += 61
        return desk.sink.writes == 2

    await desk.run_until(later)
