"""The audit log's file survives crashes, rotates, and has one writer."""

import errno
import json
import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hsm_plugin.audit_chain import Fields, Head, Kind
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


@contextmanager
def descriptors(free: int) -> Iterator[None]:
    """So many more files can be opened inside; open(2) says EMFILE then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unused = [number for number in range(soft) if not Path(f"/proc/self/fd/{number}").exists()]
    resource.setrlimit(resource.RLIMIT_NOFILE, (unused[free], hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("free", [0, 1, 2])
def test_without_descriptors_the_log_goes_on_in_its_file_and_is_rotated_later(
    path: Path, free: int
) -> None:
    file = AuditFile(path, max_bytes=1)
    fields: Fields = {"key": "k"}
    entry = [(Kind.USE, datetime.now(UTC), fields)]
    with descriptors(free):
        for _ in range(3):
            file.append(entry)
            assert file.is_ours()
    assert rotated(path) == []
    file.append(entry)
    assert file.is_ours()
    file.close()
    assert verified(*rotated(path), path).entries == 4
    assert {it.name for it in path.parent.iterdir()} == {"audit.log", "audit.log.000000000004"}


def test_a_new_file_that_cannot_take_the_name_leaves_it_to_the_old_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def full(self: Path, target: Path) -> Path:
        if self.name.endswith(".next"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return rename(self, target)

    file = AuditFile(path, max_bytes=1)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", full)
        file.append([(Kind.USE, datetime.now(UTC), {"key": "k"})])
    assert file.is_ours()
    file.append([(Kind.USE, datetime.now(UTC), {"key": "k"})])
    file.close()
    assert verified(*rotated(path), path).entries == 2


def test_what_lies_where_the_new_file_is_opened_is_no_part_of_the_log(path: Path) -> None:
    file = AuditFile(path, max_bytes=1)
    (path.parent / "audit.log.next").mkdir()  # so nothing can be opened there
    file.append([(Kind.USE, datetime.now(UTC), {"key": "k"})])
    assert file.is_ours()
    assert rotated(path) == []
    (path.parent / "audit.log.next").rmdir()
    (path.parent / "audit.log.next").write_bytes(b"of one that was killed")
    file.append([(Kind.USE, datetime.now(UTC), {"key": "k"})])
    file.close()
    assert verified(*rotated(path), path).entries == 2
    assert path.read_bytes() == b""


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
