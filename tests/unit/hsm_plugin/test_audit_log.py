"""The log's thread outlives whatever it meets, and calls learn what became of their entry."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hsm_plugin.audit_chain import Fields, Head, Kind, parse
from hsm_plugin.audit_log import AuditLog, AuditSettings, OnFailure
from hsm_plugin.errors import AuditFailedError, ConfigError


def opened(
    path: Path, on_failure: OnFailure = OnFailure.REFUSE, remembered: Head | None = None
) -> AuditLog:
    return AuditLog(AuditSettings(path, 1 << 20, on_failure, 1000, 60), {}, remembered)


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[AuditLog]:
    log = opened(tmp_path / "audit.log")
    yield log
    await log.close()


def kinds(path: Path) -> list[Kind]:
    entries = [parse(line) for line in path.read_bytes().splitlines()]
    return [entry.kind for entry in entries if entry is not None]


async def test_an_entry_is_on_the_disk_once_it_was_awaited(log: AuditLog) -> None:
    await log.record(Kind.USE, {"key": "k"})
    assert kinds(log.path) == [Kind.START, Kind.USE]
    assert log.head.sequence == 2


async def test_an_entry_that_nobody_awaits_is_written_all_the_same(tmp_path: Path) -> None:
    log = opened(tmp_path / "audit.log", OnFailure.DROP)
    for _ in range(5):
        log.record(Kind.USE, {})
    await log.close()
    assert kinds(log.path) == [Kind.START, *[Kind.USE] * 5]


async def test_an_entry_that_cannot_be_encoded_fails_alone(log: AuditLog) -> None:
    impossible: Fields = {"key": object()}  # type: ignore[dict-item] # what a bug might pass
    with pytest.raises(AuditFailedError, match="TypeError"):
        await log.record(Kind.USE, impossible)
    with pytest.raises(AuditFailedError):
        log.check()
    await log.record(Kind.USE, {})
    log.check()
    assert kinds(log.path) == [Kind.START, Kind.LOST, Kind.USE]
    assert log.lost == 1


async def test_a_log_that_is_cut_under_the_plugin_tells_of_it(log: AuditLog) -> None:
    await log.record(Kind.USE, {})
    await log.record(Kind.USE, {})
    os.truncate(log.path, len(log.path.read_bytes().splitlines(keepends=True)[0]))
    await log.record(Kind.USE, {})
    assert kinds(log.path) == [Kind.START, Kind.CUT, Kind.USE]


async def test_a_log_that_is_shorter_than_remembered_begins_with_the_cut(tmp_path: Path) -> None:
    log = opened(tmp_path / "audit.log", remembered=Head(7, "0" * 64))
    await log.close()
    assert kinds(log.path) == [Kind.CUT, Kind.START]


async def test_a_second_log_on_the_same_file_is_refused(log: AuditLog) -> None:
    with pytest.raises(ConfigError, match="another process writes"):
        opened(log.path)
