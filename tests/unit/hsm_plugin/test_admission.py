"""The queue for the token is bounded, fair between lanes, and honours deadlines."""

import asyncio
import time

import pytest

from hsm_plugin.admission import Admission
from hsm_plugin.errors import ExpiredError, OverloadedError

LATER = time.monotonic() + 3600


async def queued(admission: Admission, lane: bytes, order: list[bytes]) -> asyncio.Task[None]:
    async def call() -> None:
        await admission.enter(lane, LATER)
        order.append(lane)

    task = asyncio.create_task(call())
    await asyncio.sleep(0)
    return task


async def test_lanes_take_turns() -> None:
    admission, order = Admission(running_limit=1, queue_limit=10), list[bytes]()
    await admission.enter(b"a", LATER)
    tasks = [await queued(admission, lane, order) for lane in (b"a", b"a", b"a", b"b")]
    for task in tasks:
        admission.leave()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert admission.running == 1, task
    assert order == [b"a", b"b", b"a", b"a"]
    assert admission.waiting == 0


async def test_a_call_beyond_the_limit_is_refused_at_once() -> None:
    admission, order = Admission(running_limit=1, queue_limit=1), list[bytes]()
    await admission.enter(b"a", LATER)
    waiting = await queued(admission, b"a", order)
    with pytest.raises(OverloadedError, match="1 calls wait") as caught:
        await admission.enter(b"a", LATER)
    assert "backoff" in caught.value.hint
    admission.leave()
    await waiting


async def test_a_full_queue_makes_room_for_another_lane() -> None:
    admission, order = Admission(running_limit=1, queue_limit=3), list[bytes]()
    await admission.enter(b"a", LATER)
    flood = [await queued(admission, b"a", order) for _ in range(3)]
    late = await queued(admission, b"b", order)
    with pytest.raises(OverloadedError):
        await flood[-1]
    for _ in range(3):
        admission.leave()
    await asyncio.gather(late, *flood[:2])
    assert sorted(order) == [b"a", b"a", b"b"]


async def test_a_deadline_that_passes_in_the_queue_ends_the_wait() -> None:
    admission = Admission(running_limit=1, queue_limit=3)
    await admission.enter(b"a", LATER)
    with pytest.raises(ExpiredError):
        await admission.enter(b"a", time.monotonic() + 0.01)
    assert (admission.running, admission.waiting) == (1, 0)


async def test_a_caller_who_leaves_makes_room() -> None:
    admission, order = Admission(running_limit=1, queue_limit=1), list[bytes]()
    await admission.enter(b"a", LATER)
    gone = await queued(admission, b"a", order)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert admission.waiting == 0
    admission.leave()
    await admission.enter(b"b", LATER)
    assert (admission.running, order) == (1, [])
