"""The audit log's file survives crashes, rotates, and has one writer."""

import json
import os
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hsm_plugin.audit_chain import Head, Kind
from hsm_plugin.audit_file import AuditFile, rotated
from hsm_plugin.audit_verification import Report, Verification
from hsm_plugin.errors import ConfigError

_LARGE = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.log"


def write(path: Path, count: int = 1, *, max_bytes: int = _LARGE) -> Head:
    """Open the log, append entries one by one, and leave without an orderly end."""
    file = AuditFile(path, max_bytes=max_bytes)
    for _ in range(count):
        file.append([(Kind.USE, datetime.now(UTC), {"key": "k"})])
    file.close()
    return file.head


def verified(*paths: Path) -> Report:
    verification = Verification(keys=None, head=None)
    return verification.run(
        (path.name, path.read_bytes().splitlines(keepends=True)) for path in paths
    )


def test_the_chain_goes_on_when_the_log_is_opened_again(path: Path) -> None:
    write(path, 2)
    assert write(path, 3).sequence == 5
    assert verified(path).finding is None
    assert stat.S_IMODE(path.stat().st_mode) & 0o027 == 0


@pytest.mark.parametrize("kept", [1, 20, 60])
def test_what_a_crash_cut_off_stays_and_is_noted(path: Path, kept: int) -> None:
    write(path, 2)
    with path.open("ab") as file:
        file.write(path.read_bytes().splitlines()[0][:kept])
    write(path)
    report = verified(path)
    assert report.finding is None
    assert f"{kept} bytes of an entry" in report.notes[0]
    assert report.last == 4


def test_a_crash_inside_the_note_of_a_crash_is_noted_too(path: Path) -> None:
    write(path, 2)
    with path.open("ab") as file:
        file.write(b'{"seq":3,"pr\n{"seq":3,"prev')
    write(path)
    report = verified(path)
    assert report.finding is None
    assert report.last == 4


def test_an_entry_that_only_lacks_its_newline_counts(path: Path) -> None:
    write(path, 2)
    os.truncate(path, path.stat().st_size - 1)
    assert write(path).sequence == 3
    report = verified(path)
    assert report.finding is None
    assert not any("crash" in note for note in report.notes)


def test_a_crash_inside_the_very_first_entry_is_recovered(path: Path) -> None:
    path.write_bytes(b'{"seq":1,"pre')
    assert write(path).sequence == 2
    assert verified(path).finding is None


@pytest.mark.parametrize("content", [b"127.0.0.1 localhost\n", b"x" * 100_000])
def test_a_file_that_is_something_else_is_left_as_it_is(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="does not end with an entry"):
        AuditFile(path, max_bytes=_LARGE)
    assert path.read_bytes() == content


def test_a_full_file_is_kept_under_its_last_entry_and_the_chain_goes_on(path: Path) -> None:
    head = write(path, 10, max_bytes=500)
    older = rotated(path)
    assert len(older) >= 2
    assert head.sequence == 10
    report = verified(*older, path)
    assert (report.finding, report.entries) == (None, 10)
    assert "older files were not given" in verified(*older[1:], path).notes[0]


def test_a_crash_between_the_two_steps_of_a_rotation_loses_nothing(path: Path) -> None:
    write(path, 3)
    path.rename(path.with_name("audit.log.000000000003"))
    assert write(path).sequence == 4
    assert verified(*rotated(path), path).finding is None


def test_two_writers_are_refused(path: Path) -> None:
    first = AuditFile(path, max_bytes=_LARGE)
    with pytest.raises(ConfigError, match="another process writes"):
        AuditFile(path, max_bytes=_LARGE)
    first.close()
    AuditFile(path, max_bytes=_LARGE).close()


def test_a_link_is_not_followed(path: Path, tmp_path: Path) -> None:
    (tmp_path / "target").touch()
    path.symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic link"):
        AuditFile(path, max_bytes=_LARGE)


def test_a_fifo_is_no_log(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(ConfigError, match="not a regular file"):
        AuditFile(path, max_bytes=_LARGE)


def test_it_is_seen_when_somebody_else_changes_the_file(path: Path) -> None:
    file = AuditFile(path, max_bytes=_LARGE)
    file.append([(Kind.USE, datetime.now(UTC), {})])
    assert file.is_ours()
    os.truncate(path, 3)
    assert not file.is_ours()
    path.unlink()
    assert not file.is_ours()
    file.close()


def test_a_line_is_json_with_its_number_and_its_link(path: Path) -> None:
    write(path, 2)
    first, second = (json.loads(line) for line in path.read_bytes().splitlines())
    assert (first["seq"], first["prev"]) == (1, "0" * 64)
    assert second["kind"] == "use"
    assert second["time"].endswith("Z")
