import asyncio
import contextlib
import fcntl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from istiod_ca_bridge import directory_leadership
from istiod_ca_bridge.directory_leadership import DirectoryLeadership
from tests.unit.istiod_ca_bridge.doubles import recorded_log


@contextlib.asynccontextmanager
async def candidate(folder: Path) -> AsyncIterator[DirectoryLeadership]:
    log, _ = recorded_log()
    leadership = DirectoryLeadership(folder, log)
    task = asyncio.create_task(leadership.run())
    await asyncio.sleep(0.01)
    try:
        yield leadership
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_of_those_that_share_a_folder_one_writes_until_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory_leadership, "_LOOK_SECONDS", 0.01)
    async with contextlib.AsyncExitStack() as first_ends:
        first = await first_ends.enter_async_context(candidate(tmp_path))
        async with candidate(tmp_path) as second:
            assert (first.leads(), second.leads()) == (True, False)

            await first_ends.aclose()
            await asyncio.sleep(0.05)
            assert (first.leads(), second.leads()) == (False, True)


async def test_on_a_file_system_without_locks_each_may_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    async with candidate(tmp_path) as first, candidate(tmp_path) as second:
        assert first.leads()
        assert second.leads()
