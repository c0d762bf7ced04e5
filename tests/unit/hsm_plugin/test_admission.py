"""The queue for the token is bounded, fair between clients and lanes, and honours deadlines."""

import asyncio
import time

import pytest

from hsm_plugin.admission import Admission, Lane
from hsm_plugin.errors import ExpiredError, OverloadedError

LATER = time.monotonic() + 3600
A, B = Lane(b"a"), Lane(b"b")


async def queued(admission: Admission, lane: Lane, order: list[Lane]) -> asyncio.Task[None]:
    async def call() -> None:
        await admission.enter(lane, LATER)
        order.append(lane)

    task = asyncio.create_task(call())
    await asyncio.sleep(0)
    return task


async def test_lanes_take_turns() -> None:
    admission, order = Admission(running_limit=1, queue_limit=10), list[Lane]()
    await admission.enter(A, LATER)
    tasks = [await queued(admission, lane, order) for lane in (A, A, A, B)]
    for task in tasks:
        admission.leave()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert admission.running == 1, task
    assert order == [A, B, A, A]
    assert admission.waiting == 0


async def test_a_call_beyond_the_limit_is_refused_at_once() -> None:
    admission, order = Admission(running_limit=1, queue_limit=1), list[Lane]()
    await admission.enter(A, LATER)
    waiting = await queued(admission, A, order)
    with pytest.raises(OverloadedError, match="1 calls wait") as caught:
        await admission.enter(A, LATER)
    assert "backoff" in caught.value.hint
    admission.leave()
    await waiting


async def test_a_full_queue_makes_room_for_another_lane() -> None:
    admission, order = Admission(running_limit=1, queue_limit=3), list[Lane]()
    await admission.enter(A, LATER)
    flood = [await queued(admission, A, order) for _ in range(3)]
    late = await queued(admission, B, order)
    with pytest.raises(OverloadedError):
        await flood[-1]
    for _ in range(3):
        admission.leave()
    await asyncio.gather(late, *flood[:2])
    assert sorted(order) == [A, A, B]


async def test_a_deadline_that_passes_in_the_queue_ends_the_wait() -> None:
    admission = Admission(running_limit=1, queue_limit=3)
    await admission.enter(A, LATER)
    with pytest.raises(ExpiredError):
        await admission.enter(A, time.monotonic() + 0.01)
    assert (admission.running, admission.waiting) == (1, 0)


async def test_a_caller_who_leaves_makes_room() -> None:
    admission, order = Admission(running_limit=1, queue_limit=1), list[Lane]()
    await admission.enter(A, LATER)
    gone = await queued(admission, A, order)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert admission.waiting == 0
    admission.leave()
    await admission.enter(B, LATER)
    assert (admission.running, order) == (1, [])


async def order_of_turns(*queue: Lane) -> list[Lane]:
    """Return the order in which calls get their turn that came in this one."""
    admission, order = Admission(running_limit=1, queue_limit=100), list[Lane]()
    await admission.enter(Lane(b"", "holder"), LATER)
    tasks = [await queued(admission, lane, order) for lane in queue]
    for _ in tasks:
        admission.leave()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    return order


async def test_clients_take_turns_on_the_same_key() -> None:
    mine, yours = Lane(b"key", "mine"), Lane(b"key", "yours")
    assert await order_of_turns(mine, mine, mine, yours) == [mine, yours, mine, mine]


async def test_a_client_with_many_keys_has_no_more_turns_than_one_with_one() -> None:
    many = [Lane(b"%d" % number, "many") for number in range(4)]
    one = Lane(b"0", "one")
    assert await order_of_turns(*many, one, one) == [many[0], one, many[1], one, *many[2:]]


async def test_the_client_with_most_calls_gives_way_however_many_keys_it_names() -> None:
    admission, order = Admission(running_limit=1, queue_limit=3), list[Lane]()
    await admission.enter(A, LATER)
    flood = [await queued(admission, Lane(b"%d" % number, "flood"), order) for number in range(3)]
    late = await queued(admission, Lane(b"0", "late"), order)
    with pytest.raises(OverloadedError):
        await flood[0]
    for _ in range(3):
        admission.leave()
    await asyncio.gather(late, *flood[1:])


async def test_within_one_client_the_longest_lane_gives_way() -> None:
    admission, order = Admission(running_limit=1, queue_limit=3), list[Lane]()
    await admission.enter(A, LATER)
    flood = [await queued(admission, Lane(b"x", "me"), order) for _ in range(3)]
    late = await queued(admission, Lane(b"y", "me"), order)
    with pytest.raises(OverloadedError):
        await flood[-1]
    with pytest.raises(OverloadedError):
        await admission.enter(Lane(b"x", "me"), LATER)
    for _ in range(3):
        admission.leave()
    await asyncio.gather(late, *flood[:2])
    assert admission.waiting == 0
