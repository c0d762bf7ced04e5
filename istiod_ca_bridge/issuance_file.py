"""The issuance log's files: appended and synced in groups, mended after a crash, rotated when full.

Everything here blocks; IssuanceLog calls it on one thread.
"""

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from istiod_ca_bridge.errors import ConfigError, IssuanceLogError
from istiod_ca_bridge.files import sync_folder
from istiod_ca_bridge.issuance_chain import (
    MAX_LINE_BYTES,
    ORIGIN,
    Facts,
    Kind,
    Link,
    digest_of,
    next_line,
    parsed,
)

LOCK = ".lock"
"""Ends the name of the empty file that lies beside a log and says who writes it."""

_MODE = 0o640
_TAIL_BYTES = 8 << 20
"""More than one group of lines ever has: a crash tears no further back."""

_DIGITS = 12


class IssuanceFile:
    """The end of the chain, on a disk."""

    def __init__(self, path: Path, max_bytes: int, clock: Callable[[], datetime]) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._clock = clock
        self._descriptor = -1
        self._lock = -1
        self._size = 0
        self._first = 0
        self._at = ORIGIN

    @property
    def at(self) -> Link:
        """The last line that is on the disk."""
        return self._at

    def lock(self) -> None:
        """Have the log for this process alone; ConfigError when another has it."""
        try:
            self._lock = os.open(
                f"{self._path}{LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _MODE
            )
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"ISSUANCE_LOG: another process writes {self._path}",
                hint="each replica needs a file of its own",
            ) from None
        except OSError as error:
            raise ConfigError(
                f"ISSUANCE_LOG: {self._path} cannot be written: {error.strerror}"
            ) from None

    def open(self) -> int:
        """Find the end of the chain, mend it, say so in it; return how many bytes were dropped."""
        self.close_file()
        self._at, self._size, self._first = ORIGIN, 0, 0
        lines: list[tuple[Kind, Facts]] = []
        dropped = b""
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._descriptor = os.open(self._path, flags, _MODE)
            size = os.fstat(self._descriptor).st_size
            if size:
                start = max(size - _TAIL_BYTES, 0)
                tail = os.pread(self._descriptor, size - start, start)
                self._at, whole = _end_of(tail, is_all=not start)
                dropped = tail[whole:]
                self._size = start + whole
                self._first = _first_of(os.pread(self._descriptor, MAX_LINE_BYTES, 0))
            if self._at == ORIGIN and (newest := self._newest_full()) is not None:
                self._at = _end_of(_tail(newest))[0]
                lines.append((Kind.CONTINUED, {"after": newest.name}))
            if dropped:
                os.ftruncate(self._descriptor, self._size)
                digest = hashlib.sha256(dropped).hexdigest()
                lines.append((Kind.RECOVERED, {"bytes": len(dropped), "sha256": digest}))
            if self._at == ORIGIN:
                lines.insert(0, (Kind.OPENED, {"pid": os.getpid()}))
            elif not dropped:
                lines.append((Kind.OPENED, {"pid": os.getpid()}))
            sync_folder(self._path.parent)
        except OSError as error:
            self.close_file()
            raise IssuanceLogError(
                f"the issuance log {self._path} cannot be opened: {error.strerror}"
            ) from None
        self.append(lines)
        return len(dropped)

    def append(self, entries: Sequence[tuple[Kind, Facts]]) -> None:
        """Write and sync lines, all or none; IssuanceLogError when they are not on the disk."""
        if self._descriptor < 0:
            self.open()
        try:
            if self._size >= self._max_bytes:
                self._rotate()
            self._write(entries)
        except OSError as error:
            # What of it is on the disk is not known: the end of the chain is looked for anew.
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._size)
            self.close_file()
            raise IssuanceLogError(
                f"the issuance log {self._path} cannot be written: {error.strerror}",
                hint="is its disk full?",
            ) from None

    def _write(self, entries: Sequence[tuple[Kind, Facts]]) -> None:
        moment = self._clock()
        at, lines = self._at, []
        for kind, facts in entries:
            line, at = next_line(at, kind, moment, facts)
            lines.append(line)
        data = memoryview(b"".join(lines))
        size = self._size + len(data)
        while data:
            data = data[os.write(self._descriptor, data) :]
        os.fdatasync(self._descriptor)
        self._at, self._size = at, size
        self._first = self._first or at.seq - len(lines) + 1

    def _rotate(self) -> None:
        """Put the full file aside under the number of its first line, and begin the next."""
        full = self._path.with_name(f"{self._path.name}.{self._first:0{_DIGITS}d}")
        self._path.rename(full)
        self.close_file()
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._descriptor = os.open(self._path, flags, _MODE)
        self._size, self._first = 0, 0
        self._write([(Kind.CONTINUED, {"after": full.name})])
        sync_folder(self._path.parent)

    def _newest_full(self) -> Path | None:
        name = self._path.name
        full = [
            it
            for it in self._path.parent.glob(f"{name}.{'[0-9]' * _DIGITS}")
            if it.name.removeprefix(f"{name}.").isdecimal()
        ]
        return max(full, default=None)

    def close_file(self) -> None:
        """Close the file; the next append finds the end anew."""
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
        self._descriptor = -1

    def close(self) -> None:
        """Close the file and let another process have the log."""
        self.close_file()
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1


def _end_of(tail: bytes, *, is_all: bool = False) -> tuple[Link, int]:
    """Return the last whole line's place, and how many bytes of the tail end with it."""
    end = tail.rfind(b"\n") + 1
    while end:
        begin = tail.rfind(b"\n", 0, end - 1) + 1
        text = tail[begin : end - 1]
        line = parsed(text)
        if line is not None:
            return Link(line.seq, digest_of(text)), end
        end = begin
    if is_all:
        return ORIGIN, 0
    raise IssuanceLogError(
        "the issuance log ends with megabytes that are none of its lines",
        hint="`istiod-ca-bridge log verify` names the first; put the file aside to begin a new log",
    )


def _tail(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - _TAIL_BYTES, 0))
        return file.read()


def _first_of(head: bytes) -> int:
    line = parsed(head.partition(b"\n")[0])
    return line.seq if line else 0
