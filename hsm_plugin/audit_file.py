"""The audit log's file: appended to only, found again after a crash, and rotated by size.

Nothing that was written is ever taken back. What a crash or a full disk cut off stays, and the
next entry says how many bytes of it there are and what their SHA-256 is.
"""

import contextlib
import fcntl
import hashlib
import os
import stat
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from hsm_plugin import whole_file
from hsm_plugin.audit_chain import EMPTY, MAX_LINE_BYTES, Fields, Head, Kind, parse
from hsm_plugin.errors import ConfigError

MODE = 0o640
_TAIL_BYTES = 4 * MAX_LINE_BYTES
_SEQUENCE_DIGITS = 12
_BEGIN = b'{"seq":'


@dataclass(frozen=True, slots=True)
class _Tail:
    """The end of a file."""

    head: Head | None
    """None when no whole entry is in it."""
    rest: bytes
    """What comes after the last whole entry: of one that was cut off."""
    needs_newline: bool


class AuditFile:
    """The file that is written now. One thread at a time."""

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        """Open and lock the file; OSError or ConfigError when that cannot be."""
        self.path = path
        self._max_bytes = max_bytes
        self._handle = _opened(path)
        self._size = 0
        self.head = EMPTY
        try:
            self._recover()
        except BaseException:
            os.close(self._handle)
            raise

    def append(self, entries: list[tuple[Kind, datetime, Fields]]) -> None:
        """Return when the entries are on the disk; OSError leaves the head as it was."""
        head, lines = self.head, []
        for kind, moment, fields in entries:
            line, head = head.follow(kind, moment, fields)
            lines.append(line)
        self._write(b"".join(lines))
        self.head = head
        if self._size >= self._max_bytes:
            with contextlib.suppress(OSError, ConfigError):  # tried again with the next entries
                self._rotate()

    def is_ours(self) -> bool:
        """Tell whether the path still leads to this file, as long as it was left."""
        try:
            there, here = os.stat(self.path), os.fstat(self._handle)  # noqa: PTH116 - both alike
        except OSError:
            return False
        same = (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)
        return same and here.st_size == self._size

    def close(self) -> None:
        """Close it, and with that give up the lock."""
        os.close(self._handle)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._handle, view) :]
        os.fdatasync(self._handle)
        self._size += len(data)

    def _recover(self) -> None:
        """Find the head, and note what was cut off."""
        self._size = os.fstat(self._handle).st_size
        tail = _tail(self._handle, self._size)
        if tail.head is None and not _may_begin_an_entry(tail.rest):
            raise ConfigError(
                f"{self.path} (AUDIT_LOG) does not end with an entry of an audit log",
                hint="keep the file as evidence, move it away, and start again",
            )
        self.head = tail.head or _head_of_rotated(self.path)
        if tail.needs_newline:
            self._write(b"\n")
        if tail.rest:
            fields: Fields = {
                "torn_bytes": len(tail.rest),
                "torn_sha256": hashlib.sha256(tail.rest).hexdigest(),
            }
            self.append([(Kind.RECOVERED, datetime.now(UTC), fields)])

    def _rotate(self) -> None:
        """Go on in a new file; the old one is kept under the number of its last entry.

        The new one is open before a name changes: without room or descriptors all stays as it was.
        """
        kept = self.path.with_name(f"{self.path.name}.{self.head.sequence:0{_SEQUENCE_DIGITS}d}")
        following = self.path.with_name(f"{self.path.name}.next")
        following.unlink(missing_ok=True)  # of a process that was killed here
        with contextlib.ExitStack() as opened:
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
            opened.callback(os.close, folder)
            fresh = _opened(following)
            with contextlib.ExitStack() as given_up:
                given_up.callback(os.close, fresh)
                self._rename(kept, following)
                given_up.pop_all()
            os.close(self._handle)
            self._handle, self._size = fresh, 0
            os.fsync(folder)

    def _rename(self, kept: Path, following: Path) -> None:
        """Change both names or none."""
        self.path.rename(kept)
        try:
            following.rename(self.path)
        except OSError:
            kept.rename(self.path)
            raise


def rotated(path: Path) -> list[Path]:
    """Return the files that were rotated away, the oldest first."""
    found = path.parent.glob(f"{path.name}.{'[0-9]' * _SEQUENCE_DIGITS}")
    return sorted(found, key=lambda entry: entry.name)


def _opened(path: Path) -> int:
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    handle = os.open(path, flags, MODE)
    try:
        _check_regular(handle, path)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        whole_file.sync_folder(path.parent)
    except BlockingIOError:
        os.close(handle)
        raise ConfigError(
            f"another process writes {path} (AUDIT_LOG)", hint="give each plugin a log of its own"
        ) from None
    except BaseException:
        os.close(handle)
        raise
    return handle


def _check_regular(handle: int, path: Path) -> None:
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        raise ConfigError(f"{path} (AUDIT_LOG) is not a regular file", hint="choose another")


def _tail(handle: int, size: int) -> _Tail:
    """Return the end of the file of this size."""
    start = max(0, size - _TAIL_BYTES)
    content = os.pread(handle, size - start, start)
    whole, _, torn = content.rpartition(b"\n")
    if torn and (last := parse(torn)) is not None:
        return _Tail(last.head, b"", needs_newline=True)  # all but its newline was written
    end = len(content)
    lines = whole.split(b"\n") if whole else []
    position = len(whole)
    for line in reversed(lines):
        entry = parse(line)
        if entry is not None:
            rest = content[position + 1 : end]
            return _Tail(entry.head, rest.removesuffix(b"\n"), needs_newline=bool(torn))
        position -= len(line) + 1
    return _Tail(None, content.removesuffix(b"\n"), needs_newline=bool(torn))


def _may_begin_an_entry(rest: bytes) -> bool:
    """Tell whether this may be what is left of the only entry of a file."""
    return len(rest) <= MAX_LINE_BYTES and (rest.startswith(_BEGIN) or _BEGIN.startswith(rest))


def _head_of_rotated(path: Path) -> Head:
    """Return the head of the newest rotated file; EMPTY without one."""
    for older in reversed(rotated(path)):
        with older.open("rb") as file:
            head = _tail(file.fileno(), os.fstat(file.fileno()).st_size).head
        if head is not None:
            return head
    return EMPTY
