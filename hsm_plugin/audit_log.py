"""The audit log as the server sees it: entries go in on the event loop, a thread writes them.

What waits is written together and synced once. With `refuse`, the default, no answer leaves
before its entry is on the disk, and while entries cannot be written no key is used. With `drop`,
answers never wait; entries that cannot be written are counted, and the log says how many.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path

from hsm_plugin.audit_chain import Fields, Head, Kind
from hsm_plugin.audit_file import AuditFile
from hsm_plugin.errors import AuditFailedError, ConfigError
from hsm_plugin.log import event

_NEED_NOT_WAIT = frozenset({Kind.USE, Kind.STOCK})
_MAX_WAITING = 16_384
_MAX_BATCH = 1024
_RETRY_SECONDS = 1.0
_LINGER_SECONDS = 0.05
"""How long entries that nobody waits for are gathered: what a SIGKILL may cost."""


class OnFailure(Enum):
    """What happens while entries cannot be written."""

    REFUSE = "refuse"
    DROP = "drop"


@dataclass(frozen=True, slots=True)
class AuditSettings:
    """Where the log is, and how it is kept."""

    path: Path
    max_bytes: int
    on_failure: OnFailure
    checkpoint_entries: int
    checkpoint_seconds: float


@dataclass(frozen=True, slots=True)
class _Waiting:
    kind: Kind
    moment: datetime
    fields: Fields
    written: asyncio.Future[None] | None


class AuditLog:
    """One chain, written by one thread. All methods but the thread's run on the event loop."""

    def __init__(self, settings: AuditSettings, start: Fields, remembered: Head | None) -> None:
        """Open the log and write its start; ConfigError when that cannot be done.

        `remembered`: a head that this log has had.
        """
        self._settings = settings
        self.path = settings.path
        self._loop = asyncio.get_running_loop()
        self._queue: deque[_Waiting] = deque()
        self._gathered: list[_Waiting] = []
        """Not given to the thread yet."""
        self._wake = threading.Condition()
        self._closing = False
        self._lost = 0
        self.lost = 0
        """Entries that could not be written, since the start."""
        self.failure = ""
        """Why entries cannot be written now; empty when they can."""
        self.on_change: Callable[[], None] = lambda: None
        """Called when `failure` has changed."""
        try:
            self._file: AuditFile | None = AuditFile(settings.path, max_bytes=settings.max_bytes)
            found, now = self._file.head, datetime.now(UTC)
            if remembered is not None and remembered.sequence > found.sequence:
                self._file.append([(Kind.CUT, now, cut_fields(remembered, found))])
                _log_cut(remembered, found)
            self._file.append([(Kind.START, now, start)])
        except OSError as error:
            raise ConfigError(
                f"the audit log {settings.path} (AUDIT_LOG) cannot be written: {error.strerror}",
                hint="name a file in a folder that this process may write, on a disk with space",
            ) from None
        self._written = self.head = self._file.head
        """The last entry that is on the disk."""
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Return when keys may be used; AuditFailedError when their use would go unrecorded."""
        if self.failure and self._settings.on_failure is OnFailure.REFUSE:
            raise _failed(self.failure)

    def record(self, kind: Kind, fields: Fields) -> Awaitable[None]:
        """Take an entry; what is returned may be awaited, and raises AuditFailedError.

        With `drop` it is there at once.
        """
        waits = self._settings.on_failure is OnFailure.REFUSE or kind not in _NEED_NOT_WAIT
        written: asyncio.Future[None] = self._loop.create_future()
        entry = _Waiting(kind, datetime.now(UTC), fields, written if waits else None)
        full = len(self._queue) + len(self._gathered) >= _MAX_WAITING
        if full:
            self._lose(1)
        else:
            self._gather(entry)
        if full and waits:
            written.set_exception(_failed("too many entries wait"))
        elif not waits:
            written.set_result(None)
        written.add_done_callback(_seen)
        return written

    def _gather(self, entry: _Waiting) -> None:
        """Have the entry written with those that end in the same turn of the event loop."""
        if not self._gathered:
            if entry.written is None:
                self._loop.call_later(_LINGER_SECONDS, self._hand_over)
            else:
                self._loop.call_soon(self._hand_over)
        self._gathered.append(entry)

    def _hand_over(self) -> None:
        with self._wake:
            self._queue.extend(self._gathered)
            self._wake.notify()
        self._gathered.clear()

    def _lose(self, count: int) -> None:
        self.lost += count
        with self._wake:
            self._lost += count

    async def close(self) -> None:
        """Return when all is written, as far as it can be, and the file is closed."""
        self._hand_over()
        with self._wake:
            self._closing = True
            self._wake.notify()
        await asyncio.to_thread(self._thread.join)

    # -- the thread ----------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._wake:
                if not self._queue and not self._closing:
                    self._wake.wait(None if self._file else _RETRY_SECONDS)
                batch = [self._queue.popleft() for _ in range(min(len(self._queue), _MAX_BATCH))]
                lost, ends = self._lost, self._closing and not self._queue
            self._write(batch, lost)
            if ends:
                if self._file is not None:
                    self._file.close()
                return

    def _write(self, batch: list[_Waiting], lost: int) -> None:
        try:
            head = self._append([(it.kind, it.moment, it.fields) for it in batch], lost)
        except (OSError, ConfigError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            self._forget_file()
            self._settle(batch, None, reason)
        except Exception as error:  # noqa: BLE001 - calls wait for this thread: it may not end
            self._forget_file()
            self._settle(batch, None, f"unforeseen {type(error).__name__}")
        else:
            self._settle(batch, head, "")

    def _append(self, entries: list[tuple[Kind, datetime, Fields]], lost: int) -> Head:
        if self._file is not None and not self._file.is_ours():
            self._forget_file()
            event(
                "audit.interfered",
                "Another process changed the audit log; see `hsm-plugin audit verify`",
                level=logging.ERROR,
            )
        if self._file is None:
            settings = self._settings
            self._file = AuditFile(settings.path, max_bytes=settings.max_bytes)
            if self._file.head.sequence < self._written.sequence:
                cut = cut_fields(self._written, self._file.head)
                _log_cut(self._written, self._file.head)
                entries = [(Kind.CUT, datetime.now(UTC), cut), *entries]
        if lost:
            entries = [(Kind.LOST, datetime.now(UTC), {"entries": lost}), *entries]
        if entries:
            self._file.append(entries)
        self._written = self._file.head
        with self._wake:
            self._lost -= lost
        return self._written

    def _forget_file(self) -> None:
        """Have the next write open the file anew and note what was cut off."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _settle(self, batch: list[_Waiting], head: Head | None, failure: str) -> None:
        """Tell the event loop, in one call for the whole batch."""
        if failure:
            with self._wake:
                self._lost += len(batch)
        try:
            self._loop.call_soon_threadsafe(self._settled, batch, head, failure)
        except RuntimeError:
            return  # the loop has ended before us

    def _settled(self, batch: list[_Waiting], head: Head | None, failure: str) -> None:
        if head is not None:
            self.head = head
        else:
            self.lost += len(batch)
        if failure != self.failure:
            level = logging.ERROR if failure else logging.INFO
            event("audit.state", failure or "The audit log is written again", level=level)
            self.failure = failure
            self.on_change()
        for entry in batch:
            if entry.written is None or entry.written.done():
                continue
            if failure:
                entry.written.set_exception(_failed(failure))
            else:
                entry.written.set_result(None)


def cut_fields(expected: Head, found: Head) -> Fields:
    """Return the fields of a CUT entry."""
    return {"expected": expected.sequence, "digest": expected.digest, "found": found.sequence}


def _log_cut(expected: Head, found: Head) -> None:
    event(
        "audit.cut",
        f"The audit log ends at entry {found.sequence}, but it had {expected.sequence}",
        level=logging.ERROR,
    )


def _failed(reason: str) -> AuditFailedError:
    return AuditFailedError(
        f"the audit log cannot be written, so no key is used: {reason}",
        hint="make room for AUDIT_LOG; the plugin goes on by itself",
    )


def _seen(written: asyncio.Future[None]) -> None:
    """Take note of an error that nobody awaits."""
    if not written.cancelled():
        written.exception()
