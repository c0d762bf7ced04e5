import asyncio

import pytest

from istiod_ca_bridge.admission import Admission
from istiod_ca_bridge.errors import OverloadedError
from istiod_ca_bridge.metrics import Metrics


class Desk:
    """An admission whose requests stay until they are let go, and note when they come in."""

    def __init__(self, places: int, waiting: int) -> None:
        self.admission = Admission(places, waiting, Metrics())
        self.came_in: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self._go: dict[str, asyncio.Event] = {}

    async def send(self, name: str, namespace: str = "a", deadline: float = 1.0) -> None:
        self._go[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._request(name, namespace, deadline))
        await settled()

    async def let_go(self, name: str) -> None:
        self._go[name].set()
        await settled()

    async def _request(self, name: str, namespace: str, deadline: float) -> None:
        async with self.admission.place(namespace, deadline):
            self.came_in.append(name)
            await self._go[name].wait()


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_who_waits_comes_in_by_deadline_as_places_are_freed() -> None:
    desk = Desk(places=1, waiting=2)
    await desk.send("first")
    await desk.send("later", deadline=9.0)
    await desk.send("sooner", deadline=2.0)

    for name in ("first", "sooner", "later"):
        await desk.let_go(name)

    assert desk.came_in == ["first", "sooner", "later"]
    await desk.send("next")
    assert desk.came_in[-1] == "next"


async def test_whom_there_is_no_room_for_is_told_when_to_come_again() -> None:
    desk = Desk(places=1, waiting=1)
    for name in ("in", "waits", "over"):
        await desk.send(name)

    with pytest.raises(OverloadedError) as caught:
        await desk.tasks["over"]
    assert 0.5 <= caught.value.retry_after <= 15


async def test_who_gives_way_is_told_so_and_the_other_waits() -> None:
    desk = Desk(places=1, waiting=2)
    for name in ("in", "one", "two"):
        await desk.send(name)
    await desk.send("other", namespace="b")

    with pytest.raises(OverloadedError):
        await desk.tasks["two"]
    for name in ("in", "one", "other"):
        await desk.let_go(name)
    assert desk.came_in == ["in", "one", "other"]


async def test_a_request_that_is_cancelled_leaves_its_place_to_another() -> None:
    desk = Desk(places=1, waiting=3)
    for name in ("in", "leaves", "stays"):
        await desk.send(name)
    desk.tasks["leaves"].cancel()
    await settled()
    await desk.let_go("in")

    assert desk.came_in == ["in", "stays"]


async def test_a_place_given_to_one_cancelled_at_the_same_moment_is_not_lost() -> None:
    for cancel_first in (True, False):
        desk = Desk(places=1, waiting=3)
        for name in ("in", "leaves", "stays"):
            await desk.send(name)
        if cancel_first:
            desk.tasks["leaves"].cancel()
            await desk.let_go("in")
        else:
            desk.tasks["in"].cancel()
            await asyncio.sleep(0)  # "in" hands its place to "leaves", which has not run yet
            desk.tasks["leaves"].cancel()
            await settled()

        assert desk.came_in == ["in", "stays"]
