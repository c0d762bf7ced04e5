"""The loop finds the token, finds it again, and waits for a new PIN after a refusal."""
# ruff: noqa: ASYNC240 - small files of the test itself

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hsm_plugin import breaker, connection
from hsm_plugin.breaker import Breaker
from hsm_plugin.connection import Connection, TokenState
from hsm_plugin.errors import HsmUnavailableError, PinRefusedError
from hsm_plugin.keys import TokenIdentity
from hsm_plugin.token_client import Lost
from hsm_plugin.worker_process import Loss

IDENTITY = TokenIdentity(label="mesh", serial="1", model="m", slot_id=1, session_limit=8)
USABLE, LOST = TokenState.USABLE, TokenState.LOST


@dataclass(slots=True)
class ScriptedToken:
    """Answers each connect with the next entry; the last is repeated."""

    script: list[Exception | None]
    attempts: int = 0
    probes: int = 0
    replacements: int = 0
    rank: int = 0
    preferences: int = 0
    is_connected: bool = False
    fails_probe: bool = False
    breaker: Breaker = field(default_factory=lambda: Breaker("mesh"))
    worker: None = None
    pauses: list[float] = field(default_factory=list)
    trials: list[tuple[Path, Path | None]] = field(default_factory=list)

    async def connect(self) -> TokenIdentity:
        self.attempts += 1
        outcome = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if outcome is not None:
            raise outcome
        self.is_connected = True
        return IDENTITY

    async def replace(self) -> TokenIdentity:
        self.replacements += 1
        return await self.connect()

    async def try_pin(self, pin_file: Path, in_use: Path | None) -> bool:
        self.trials.append((pin_file, in_use))
        return in_use is None

    async def prefer(self) -> TokenIdentity:
        self.preferences += 1
        identity = await self.connect()
        self.rank = 0
        return identity

    async def probe(self) -> None:
        self.probes += 1
        if self.fails_probe:
            self.fails_probe = self.is_connected = False
            raise HsmUnavailableError("gone")

    async def lost(self) -> Lost:
        while self.is_connected:  # noqa: ASYNC110 - the tests set a flag
            await asyncio.sleep(0.001)
        return Lost(Loss.TOKEN, "gone")

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)

    def kill_if_hung(self) -> None:
        """Nothing hangs here."""


@dataclass(slots=True)
class Run:
    """A loop on a scripted token, and the states that it reported."""

    token: ScriptedToken
    pin_file: Path
    states: list[TokenState] = field(default_factory=list)

    async def until(self, condition: Callable[[], bool]) -> None:
        async def note(state: TokenState) -> None:
            self.states.append(state)

        task = asyncio.create_task(Connection(self.token, self.pin_file, note, 0.01).run())
        try:
            async with asyncio.timeout(30):
                while not condition():  # noqa: ASYNC110 - the condition is not an event
                    await asyncio.sleep(0.001)
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


@pytest.fixture
def pin_file(tmp_path: Path) -> Path:
    path = tmp_path / "pin"
    path.write_text("1111")
    return path


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_POLL_SECONDS", 0.001)
    monkeypatch.setattr(connection, "_PROBE_SECONDS", 0.01)
    monkeypatch.setattr(breaker, "FIRST_SECONDS", 0.001)


async def test_a_found_token_is_usable(pin_file: Path) -> None:
    run = Run(ScriptedToken([None]), pin_file)
    await run.until(lambda: run.states == [USABLE])
    assert run.token.attempts == 1


async def test_an_unreachable_token_is_looked_for_until_it_is_there(pin_file: Path) -> None:
    away = HsmUnavailableError("away")
    run = Run(ScriptedToken([away, away, away, None]), pin_file)
    await run.until(lambda: run.states == [USABLE])
    assert run.token.attempts == 4


async def test_a_lost_token_is_reported_and_found_again(pin_file: Path) -> None:
    run = Run(ScriptedToken([None]), pin_file)

    def lose() -> bool:
        if run.states == [USABLE]:
            run.token.is_connected = False
        return len(run.states) >= 3

    await run.until(lose)
    assert run.states == [USABLE, LOST, USABLE]
    assert run.token.attempts == 2


async def test_a_silent_loss_is_found_by_the_probe(pin_file: Path) -> None:
    run = Run(ScriptedToken([None], fails_probe=True), pin_file)
    await run.until(lambda: len(run.states) >= 3)
    assert run.states == [USABLE, LOST, USABLE]


async def test_a_stand_by_is_left_for_the_preferred_token_once_that_is_back(pin_file: Path) -> None:
    away = HsmUnavailableError("away")
    token = ScriptedToken([None, away, away, None], rank=1)
    run = Run(token, pin_file)
    await run.until(lambda: token.rank == 0)
    assert token.preferences == 3
    assert run.states == [USABLE]


async def test_what_nobody_foresaw_ends_no_way_back_and_is_told_by_its_type(
    pin_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    token = ScriptedToken([None, OSError("PIN 1234"), ValueError("PIN 1234"), None], rank=1)
    await Run(token, pin_file).until(lambda: token.rank == 0)
    assert token.preferences == 3
    assert "unforeseen OSError" in caplog.text
    assert "1234" not in caplog.text


async def test_the_preferred_token_is_not_left(pin_file: Path) -> None:
    run = Run(ScriptedToken([None]), pin_file)
    await run.until(lambda: run.token.probes >= 3)
    assert run.token.preferences == 0


async def test_after_a_refusal_nothing_is_tried_until_the_file_changes(pin_file: Path) -> None:
    run = Run(ScriptedToken([PinRefusedError("refused"), None]), pin_file)
    polls = 0

    def change_late() -> bool:
        nonlocal polls
        polls += 1
        if polls == 100:
            assert run.token.attempts == 1
            pin_file.write_text("22222")
        return run.states == [USABLE]

    await run.until(change_late)
    assert polls >= 100
    assert run.token.attempts == 2


@pytest.mark.parametrize("way", ["same length", "replaced", "through a link"])
async def test_a_new_pin_is_noticed_however_it_is_written(pin_file: Path, way: str) -> None:
    if way == "through a link":
        first, second = pin_file.with_name("1"), pin_file.with_name("2")
        first.write_text("1111")
        second.write_text("2222")
        pin_file.unlink()
        pin_file.symlink_to(first)
    run = Run(ScriptedToken([PinRefusedError("refused"), None]), pin_file)

    def change() -> bool:
        if run.token.attempts == 1:
            if way == "same length":
                pin_file.write_text("2222")
            else:
                other = pin_file.with_name("other")
                if way == "replaced":
                    other.write_text("2222")
                else:
                    other.symlink_to(second)
                other.replace(pin_file)
        return run.states == [USABLE]

    await run.until(change)


async def test_a_pin_file_that_appears_later_is_noticed(pin_file: Path) -> None:
    pin_file.unlink()
    run = Run(ScriptedToken([PinRefusedError("no file"), None]), pin_file)

    def appear() -> bool:
        if run.token.attempts == 1 and not pin_file.exists():
            pin_file.write_text("1111")
        return run.states == [USABLE]

    await run.until(appear)


async def test_the_tokens_state_is_read_again_long_after_a_refusal(
    pin_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_RECHECK_SECONDS", 0.01)
    run = Run(ScriptedToken([PinRefusedError("locked"), None]), pin_file)
    await run.until(lambda: run.states == [USABLE])


async def reloaded(run: Run, *, after_attempts: int = 0) -> None:
    """Reload beside the loop, when so many attempts of the script are over."""

    async def note(_: TokenState) -> None:
        await asyncio.sleep(0)

    kept = Connection(run.token, run.pin_file, note)
    task = asyncio.create_task(kept.run())
    try:
        async with asyncio.timeout(30):
            while run.token.attempts < after_attempts:  # noqa: ASYNC110 - the condition is not an event
                await asyncio.sleep(0.001)
            await kept.reload()
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_a_reload_without_a_connection_is_told_of_the_refusal_of_this_pin(
    tmp_path: Path,
) -> None:
    pin_file = tmp_path / "pin"
    pin_file.write_text("1111")
    token = ScriptedToken([PinRefusedError("refused")])
    with pytest.raises(PinRefusedError):
        await reloaded(Run(token, pin_file))
    assert (token.attempts, token.replacements) == (1, 0)


async def test_a_reload_without_a_connection_waits_for_the_loop_to_connect(
    tmp_path: Path,
) -> None:
    pin_file = tmp_path / "pin"
    pin_file.write_text("1111")
    token = OpeningToken([HsmUnavailableError("away"), None])
    await reloaded(Run(token, pin_file))
    assert (token.attempts, token.replacements) == (2, 0)


async def test_a_reload_on_a_connection_replaces_it(tmp_path: Path) -> None:
    pin_file = tmp_path / "pin"
    pin_file.write_text("1111")
    token = OpeningToken([None])
    await reloaded(Run(token, pin_file), after_attempts=1)
    assert token.replacements == 1


async def test_a_trial_is_compared_with_the_pin_file_that_the_connection_was_made_with(
    tmp_path: Path,
) -> None:
    pin_file, staged = tmp_path / "pin", tmp_path / "staged"
    pin_file.write_text("1111")
    kept = Connection(OpeningToken([None]), pin_file, _ignore)
    await kept._connect(connection._fingerprint(pin_file))
    assert await kept.try_pin(staged) is False
    pin_file.write_text("22222")
    assert await kept.try_pin(staged) is True
    await kept.reload()
    assert await kept.try_pin(staged) is False
    assert isinstance(kept.token, ScriptedToken)
    assert kept.token.trials == [(staged, pin_file), (staged, None), (staged, pin_file)]


async def test_a_trial_without_a_connection_is_compared_with_nothing(tmp_path: Path) -> None:
    pin_file = tmp_path / "pin"
    pin_file.write_text("1111")
    assert await Connection(ScriptedToken([None]), pin_file, _ignore).try_pin(pin_file) is True


async def test_a_trial_waits_for_the_login_that_is_under_way(tmp_path: Path) -> None:
    pin_file = tmp_path / "pin"
    pin_file.write_text("1111")
    token = SlowToken([None])
    kept = Connection(token, pin_file, _ignore)
    login = asyncio.create_task(kept._connect(None))
    await asyncio.sleep(0)
    trial = asyncio.create_task(kept.try_pin(pin_file))
    await asyncio.sleep(0.01)
    assert token.trials == []
    token.release.set()
    await asyncio.gather(login, trial)
    assert len(token.trials) == 1


async def _ignore(_: TokenState) -> None:
    await asyncio.sleep(0)


class OpeningToken(ScriptedToken):
    """A scripted token whose breaker closes with a connection, as the real one's does."""

    async def connect(self) -> TokenIdentity:
        identity = await ScriptedToken.connect(self)
        self.breaker.close()
        return identity


@dataclass(slots=True)
class SlowToken(ScriptedToken):
    """A scripted token that connects when it is told to."""

    release: asyncio.Event = field(default_factory=asyncio.Event)

    async def connect(self) -> TokenIdentity:
        await self.release.wait()
        return await ScriptedToken.connect(self)
