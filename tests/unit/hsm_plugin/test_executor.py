"""Blocking calls are bounded in number, and a call whose time is up never starts."""

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest

from hsm_plugin.errors import ExpiredError, OverloadedError
from hsm_plugin.executor import Executor


@pytest.fixture
def executor() -> Iterator[Executor]:
    executor = Executor(workers=1, queue_limit=2)
    yield executor
    executor.close()


class Gate:
    """A call that is seen to start and ends when told."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.opened = threading.Event()
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        self.started.set()
        assert self.opened.wait(30)
        return "done"


async def until(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, 30)


async def test_a_call_runs_on_another_thread_and_its_result_comes_back(executor: Executor) -> None:
    def name(prefix: str, *, suffix: str) -> str:
        return prefix + threading.current_thread().name + suffix

    assert await executor.run(None, name, "<", suffix=">") == "<token_0>"
    assert executor.queued == 0


async def test_an_error_of_the_call_comes_back_as_it_is(executor: Executor) -> None:
    with pytest.raises(ZeroDivisionError):
        await executor.run(None, divmod, 1, 0)
    assert executor.queued == 0


async def test_a_call_beyond_the_queue_limit_is_refused_at_once(executor: Executor) -> None:
    gate = Gate()
    running = [asyncio.create_task(executor.run(None, gate)) for _ in range(2)]
    await until(gate.started)
    assert executor.queued == 2
    with pytest.raises(OverloadedError, match="2 calls wait") as caught:
        await executor.run(None, gate)
    assert "backoff" in caught.value.hint
    gate.opened.set()
    assert await asyncio.gather(*running) == ["done", "done"]
    assert gate.calls == 2
    assert executor.queued == 0
    assert await executor.run(None, gate) == "done"


async def test_a_call_whose_deadline_passed_never_runs(executor: Executor) -> None:
    gate = Gate()
    with pytest.raises(ExpiredError, match="before the token was free"):
        await executor.run(time.monotonic(), gate)
    assert gate.calls == 0
    assert executor.queued == 0


async def test_a_call_whose_deadline_passes_in_the_queue_never_runs(
    executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, late = Gate(), Gate()
    first = asyncio.create_task(executor.run(None, gate))
    await until(gate.started)
    now = time.monotonic()
    second = asyncio.create_task(executor.run(now + 3600, late))
    await asyncio.sleep(0)
    monkeypatch.setattr("hsm_plugin.executor.time.monotonic", lambda: now + 3601)
    gate.opened.set()
    assert await first == "done"
    with pytest.raises(ExpiredError):
        await second
    assert late.calls == 0


async def test_a_call_within_its_deadline_runs(executor: Executor) -> None:
    assert await executor.run(time.monotonic() + 3600, lambda: "done") == "done"


async def test_a_caller_who_leaves_the_queue_makes_room(executor: Executor) -> None:
    gate, left = Gate(), Gate()
    first = asyncio.create_task(executor.run(None, gate))
    await until(gate.started)
    second = asyncio.create_task(executor.run(None, left))
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    await asyncio.sleep(0)
    assert executor.queued == 1
    gate.opened.set()
    await first
    assert left.calls == 0


async def test_a_running_call_keeps_its_place_when_its_caller_leaves(executor: Executor) -> None:
    gate = Gate()
    gone = asyncio.create_task(executor.run(None, gate))
    await until(gate.started)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    await asyncio.sleep(0)
    assert executor.queued == 1
    gate.opened.set()
    assert await executor.run(None, lambda: "next") == "next"
    assert executor.queued == 0


async def test_closing_waits_for_the_running_call_and_drops_the_waiting_one() -> None:
    executor = Executor(workers=1, queue_limit=2)
    gate, waiting = Gate(), Gate()
    first = asyncio.create_task(executor.run(None, gate))
    await until(gate.started)
    second = asyncio.create_task(executor.run(None, waiting))
    await asyncio.sleep(0)
    closing = asyncio.create_task(asyncio.to_thread(executor.close))
    with pytest.raises(asyncio.CancelledError):
        await second
    assert not closing.done()
    gate.opened.set()
    await closing
    assert await first == "done"
    assert waiting.calls == 0
