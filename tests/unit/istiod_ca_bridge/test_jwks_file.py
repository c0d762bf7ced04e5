import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from istiod_ca_bridge import jwks_file
from istiod_ca_bridge.jwks_file import JwksFile
from tests.integration.istiod_ca_bridge.harness import token_issuer
from tests.unit.istiod_ca_bridge.doubles import recorded_log

FIRST = token_issuer()
SECOND = type(FIRST)(FIRST.key, "k2")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "jwks.json"
    path.write_text(FIRST.jwks())
    return path


@asynccontextmanager
async def watching(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[JwksFile, list[str]]]:
    monkeypatch.setattr(jwks_file, "_POLL_SECONDS", 0.005)
    log, lines = recorded_log()
    watched = JwksFile(path, log)
    task = asyncio.create_task(watched.watch())
    try:
        yield watched, lines
    finally:
        task.cancel()
        await asyncio.wait([task])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - a file has no event for it
            await asyncio.sleep(0.005)


async def test_new_keys_are_taken_up_and_the_old_ones_trusted_no_more(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with watching(path, monkeypatch) as (watched, _):
        assert set(watched.keys()) == {"k1"}
        (tmp_path / "new").write_text(SECOND.jwks())
        (tmp_path / "new").replace(path)
        await until(lambda: set(watched.keys()) == {"k2"})


def break_file(path: Path, content: str | None) -> None:
    if content is None:
        path.unlink()
    else:
        new = path.with_name("new")
        new.write_text(content)
        new.replace(path)


@pytest.mark.parametrize("content", ["", "{}", '{"keys": []}', "garbage", None])
async def test_a_broken_file_is_told_once_and_the_old_keys_stay(
    content: str | None, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with watching(path, monkeypatch) as (watched, lines):
        break_file(path, content)
        await until(lambda: bool(lines))
        await asyncio.sleep(0.03)

        assert set(watched.keys()) == {"k1"}
    assert [line.split()[0] for line in lines] == ["jwks.refused"]
