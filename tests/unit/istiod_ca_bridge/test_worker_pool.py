"""A bridge whose workers are small scripts: what it makes of what they tell and how they end."""

import asyncio
import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest

from istiod_ca_bridge import worker_handle, worker_pool
from istiod_ca_bridge.config import read_config
from istiod_ca_bridge.errors import BridgeError, ConfigError
from istiod_ca_bridge.worker_handle import WorkerHandle
from istiod_ca_bridge.worker_messages import LONGEST_LINE, Ended, Health, line_of
from istiod_ca_bridge.worker_pool import WorkerPool
from tests.unit.istiod_ca_bridge.doubles import recorded_log

_SETTINGS = {
    "KEY_MANAGEMENT_KEY_ID": "kek",
    "CA_LISTEN": "127.0.0.1:0",
    "DRAIN_DELAY": "0s",
    "DRAIN_DURATION": "0s",
}

SERVES = line_of(Health(serving=True))
STAYS = "import signal; signal.pause()"
CRASHES = "import os; os.abort()"
IGNORES_TERM = "import signal; signal.signal(15, signal.SIG_IGN)"


def told(*lines: bytes, then: str = STAYS) -> str:
    """Return the script of a worker that tells this and then does that."""
    return "; ".join([f"say({line!r})" for line in lines] + [then])


@dataclass(slots=True)
class Stage:
    """A pool, and the scripts that its workers are started with, by number, the last for ever."""

    scripts: dict[int, list[str]]
    starts: list[int] = field(default_factory=list)
    pool: WorkerPool = field(init=False)
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    held: asyncio.Event | None = None
    """Starts take until it is set."""

    lines: list[str] = field(init=False)

    def __post_init__(self) -> None:
        log, self.lines = recorded_log()
        config = read_config(_SETTINGS | {"CA_WORKERS": str(len(self.scripts))})
        self.pool = WorkerPool(config, log, self._launch)

    async def _launch(self, number: int, _count: int, _listener: int, _shares: int) -> WorkerHandle:
        self.starts.append(number)
        scripts = self.scripts[number]
        script = scripts.pop(0) if len(scripts) > 1 else scripts[0]
        if script == "":
            raise OSError(11, "Resource temporarily unavailable")
        ours, theirs = socket.socketpair()
        with theirs:
            process = _started(theirs.fileno(), script)
        if self.held is not None:
            await self.held.wait()
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=LONGEST_LINE)
        return WorkerHandle(process, reader, writer)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        task = asyncio.create_task(self.pool.run(self.stop))
        try:
            yield task
        finally:
            self.stop.set()
            await asyncio.wait([task])

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110 - the pool tells nobody
                await asyncio.sleep(0.01)

    async def until_told(self, text: str) -> None:
        await self.until(lambda: any(text in line for line in self.lines))

    async def figure(self, name: str) -> str:
        lines = (await self.pool.exposition()).decode().splitlines()
        return next(line.rpartition(" ")[2] for line in lines if line.startswith(f"{name} "))


def _started(channel: int, script: str) -> subprocess.Popen[bytes]:
    code = f"import socket; channel = socket.socket(fileno={channel}); say = channel.sendall; "
    return subprocess.Popen([sys.executable, "-c", code + script], pass_fds=[channel])


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "_FIRST_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(worker_pool, "_LOOK_SECONDS", 0.02)
    monkeypatch.setattr(worker_handle, "_FIGURES_SECONDS", 0.05)


async def test_it_serves_as_long_as_one_of_its_workers_does() -> None:
    stage = Stage({1: [told(SERVES)], 2: [told(line_of(Health(serving=False)))]})
    async with stage.running():
        await stage.until_told("workers.serving {'serving': 1, 'of': 2}")

        assert stage.pool.health.serving
        assert await stage.figure('istiod_ca_bridge_worker_serving{worker="1"}') == "1.0"
        assert await stage.figure('istiod_ca_bridge_worker_serving{worker="2"}') == "0.0"
    assert not stage.pool.health.serving


async def test_it_does_not_serve_when_none_of_its_workers_does() -> None:
    crashes = told(SERVES, then=f"import time; time.sleep(0.2); {CRASHES}")
    stage = Stage({1: [crashes, STAYS], 2: [STAYS]})
    async with stage.running():
        await stage.until(lambda: stage.pool.health.serving)
        await stage.until_told("worker.ended")
        await stage.until(lambda: not stage.pool.health.serving)


@pytest.mark.parametrize(
    ("end", "how"),
    [(CRASHES, "SIGABRT"), ("raise SystemExit", "exit code 0"), ("say(b'x\\n'); " + STAYS, "")],
)
async def test_a_worker_that_ends_unasked_is_started_again_and_told_and_counted(
    end: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_handle, "_EXIT_SECONDS", 0.5)
    stage = Stage({1: [told(SERVES, then=end), told(SERVES)], 2: [told(SERVES)]})
    async with stage.running():
        await stage.until(lambda: stage.starts.count(1) == 2)

        assert stage.starts.count(2) == 1
        assert any("worker.ended" in line and how in line for line in stage.lines)
        assert await stage.figure('istiod_ca_bridge_worker_restarts_total{worker="1"}') == "1.0"
        await stage.until(lambda: stage.pool.health.serving)


async def test_pauses_grow_while_a_worker_cannot_be_kept_up() -> None:
    stage = Stage({1: [""], 2: [told(SERVES)]})
    async with stage.running():
        await stage.until(lambda: stage.starts.count(1) == 4)

        failures = [line for line in stage.lines if "could not be started" in line]
        for pause, line in zip((0.02, 0.04, 0.08), failures, strict=False):
            assert f"'again_in_seconds': {pause}" in line


@pytest.mark.parametrize(("is_config", "kind"), [(True, ConfigError), (False, BridgeError)])
async def test_what_only_a_person_can_mend_ends_the_bridge_with_the_workers_own_words(
    is_config: bool,  # noqa: FBT001 - a parameter of the test
    kind: type[BridgeError],
) -> None:
    ended = line_of(Ended("the log is another's", "give it its own", is_config))
    stage = Stage({1: [told(ended, then="raise SystemExit(2)")], 2: [told(SERVES)]})

    with pytest.raises(BridgeError, match="the log is another's") as raised:
        await asyncio.wait_for(stage.pool.run(stage.stop), 10)

    assert type(raised.value) is kind
    assert raised.value.hint == "give it its own"
    assert stage.starts == [1, 2]


async def test_one_that_is_silent_is_not_counted_on_and_in_the_end_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_pool, "_SILENT_SECONDS", 0.3)
    monkeypatch.setattr(worker_pool, "_STUCK_SECONDS", 0.6)
    stage = Stage({1: [told(SERVES), told(SERVES)]} | {2: [STAYS]})
    async with stage.running():
        await stage.until_told("workers.serving {'serving': 1, 'of': 2}")
        await stage.until_told("workers.serving {'serving': 0, 'of': 2}")
        await stage.until_told("worker.stuck {'number': 1")
        await stage.until(lambda: stage.starts.count(1) == 2)


async def test_one_that_is_being_started_at_the_stop_is_ended_too() -> None:
    stage = Stage({1: [told(SERVES)], 2: [told(SERVES)]}, held=asyncio.Event())
    async with stage.running():
        assert stage.held is not None
        await stage.until(lambda: len(stage.starts) == 2)
        stage.stop.set()
        await asyncio.sleep(0.05)
        stage.held.set()
        began = time.monotonic()

    assert time.monotonic() - began < 5
    assert not any("workers.killed" in line for line in stage.lines)


async def test_one_that_does_not_end_when_it_is_asked_to_is_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_pool, "_MORE_TO_END_SECONDS", 0.2)
    stage = Stage({1: [f"{IGNORES_TERM}; {told(SERVES)}"], 2: [told(SERVES)]})
    async with stage.running():
        await stage.until_told("workers.serving {'serving': 2, 'of': 2}")
        began = time.monotonic()

    assert time.monotonic() - began < 5
    assert any("workers.killed {'numbers': '1'}" in line for line in stage.lines)
    assert stage.starts == [1, 2]
