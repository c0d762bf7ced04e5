"""Whether an audit log is whole: the first entry that is not what was written, and what befell it.

The chain shows an entry that was changed, removed or moved. What was written anew to its end, or
cut off at its end, is shown by the checkpoints, which the token signed, and by a head that is
known from elsewhere.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

from hsm_plugin.audit_chain import (
    EMPTY,
    MAX_LINE_BYTES,
    Entry,
    Head,
    Kind,
    checkpoint_message,
    parse,
)

IsSigned = Callable[[bytes, bytes, str], bool]
"""Tells whether a signature (second) of the message (first) with this mechanism is genuine."""

Keys = Mapping[str, IsSigned]
"""By the SHA-256 of the public key, DER, as a checkpoint names it."""


class Fault(Enum):
    """What befell a log."""

    CHANGED = "changed"
    REMOVED = "removed"
    REORDERED = "reordered"
    REPEATED = "repeated"
    TORN = "torn"
    """The log ends inside an entry."""
    TRUNCATED = "truncated"
    """Whole entries are gone from the end."""
    REWRITTEN = "rewritten"
    """The chain holds, but it is not the one that the token signed."""
    FORGED = "forged"
    """A checkpoint bears no signature of the token's key."""
    UNKNOWN_KEY = "unknown-key"
    """A checkpoint names a key that was not given: another token's, or a forger's."""
    UNSIGNED = "unsigned"
    """No checkpoint is in the log."""


_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Finding:
    """The first broken entry."""

    fault: Fault
    entry: int
    """Sequence number of the first entry that is not as it was written."""
    place: str
    """File and line where it shows."""
    message: str


@dataclass(slots=True)
class Report:
    """What a verification found. Without a finding the log is whole."""

    entries: int = 0
    first: int = 0
    last: int = 0
    signed_up_to: int = 0
    checkpoints: int = 0
    signers: dict[str, int] = field(default_factory=dict)
    """Checkpoints by the SHA-256 of the key that signed them."""
    notes: list[str] = field(default_factory=list)
    finding: Finding | None = None


@dataclass(frozen=True, slots=True)
class _Line:
    content: bytes
    place: str
    is_whole: bool
    """It ends with a newline."""


class Verification:
    """One pass over a log."""

    def __init__(self, *, keys: Keys | None, head: Head | None) -> None:
        """`keys` None: signatures are not looked at. `head`: one that the log has had."""
        self._keys = keys
        self._head = head
        self._report = Report()
        self._digests: dict[int, str] = {}
        """Of the entries after the last checkpoint's."""
        self._last: Entry | None = None
        self._torn: list[_Line] = []

    def run(self, files: Iterable[tuple[str, Iterable[bytes]]]) -> Report:
        """Return the report. `files`: names and lines, newlines with them, the oldest first."""
        lines = _lines(files)
        for line in lines:
            finding = self._take(line, lines)
            if finding is not None:
                self._report.finding = finding
                return self._report
        self._report.finding = self._end()
        return self._report

    def _take(self, line: _Line, rest: Iterator[_Line]) -> Finding | None:
        entry = parse(line.content)
        if entry is None or not line.is_whole:
            self._torn.append(line)
            return None
        before = self._last
        expected = before.sequence + 1 if before else entry.sequence
        finding = self._check_torn(entry, expected)
        if finding is None and entry.sequence != expected:
            finding = _misplaced(entry, expected, line, rest)
        if finding is None:
            finding = self._check_link(entry, before, line, rest)
        if finding is None:
            self._accept(entry)
            finding = self._check_kind(entry, line)
        return finding

    def _check_torn(self, entry: Entry, expected: int) -> Finding | None:
        """Return a finding unless unreadable lines are those that this entry tells of."""
        torn, self._torn = self._torn, []
        if not torn:
            return None
        content = b"\n".join(line.content for line in torn)
        told = entry.text("torn_sha256") if entry.kind is Kind.RECOVERED else ""
        if hashlib.sha256(content).hexdigest() != told:
            message = f"entry {expected} was changed: it is no entry any more"
            return Finding(Fault.CHANGED, expected, torn[0].place, message)
        self._report.notes.append(
            f"{torn[0].place}: {len(content)} bytes of an entry that a crash cut off, "
            f"noted by entry {entry.sequence}"
        )
        return None

    def _check_link(
        self, entry: Entry, before: Entry | None, line: _Line, rest: Iterator[_Line]
    ) -> Finding | None:
        if before is None:
            if entry.sequence == 1 and entry.previous != EMPTY.digest:
                message = "entry 1 was changed: it does not begin a chain"
                return Finding(Fault.CHANGED, 1, line.place, message)
            if entry.sequence > 1:
                self._report.notes.append(
                    f"the log begins at entry {entry.sequence}; older files were not given"
                )
            return None
        if entry.previous == before.digest:
            return None
        after = next(rest, None)
        following = parse(after.content) if after else None
        stands = following is None or following.previous == entry.digest
        broken = before.sequence if stands else entry.sequence
        message = f"entry {broken} was changed after it was written"
        return Finding(Fault.CHANGED, broken, line.place, message)

    def _accept(self, entry: Entry) -> None:
        report = self._report
        report.entries += 1
        report.first = report.first or entry.sequence
        report.last = entry.sequence
        self._digests[entry.sequence] = entry.digest
        self._last = entry

    def _check_kind(self, entry: Entry, line: _Line) -> Finding | None:
        match entry.kind:
            case Kind.CHECKPOINT:
                return self._check_checkpoint(entry, line)
            case Kind.CUT:
                found, expected = entry.number("found"), entry.number("expected")
                message = (
                    f"entries {found + 1} to {expected} were gone when entry {entry.sequence} "
                    "was written"
                )
                return Finding(Fault.TRUNCATED, found + 1, line.place, message)
            case Kind.LOST:
                self._report.notes.append(
                    f"entry {entry.sequence}: {entry.number('entries')} entries could not be "
                    "written before it"
                )
        return None

    def _check_checkpoint(self, entry: Entry, line: _Line) -> Finding | None:
        covered = Head(entry.number("covers"), entry.text("digest"))
        if not _DIGEST.fullmatch(covered.digest):
            message = f"entry {entry.sequence} is a checkpoint of no digest"
            return Finding(Fault.FORGED, entry.sequence, line.place, message)
        if self._keys is not None:
            finding = self._check_signature(self._keys, entry, covered, line)
            if finding is not None:
                return finding
        report = self._report
        if covered.sequence >= report.first:
            if self._digests.get(covered.sequence) != covered.digest:
                first = max(report.signed_up_to + 1, report.first)
                message = (
                    f"entries from {first} to {covered.sequence} were written anew: "
                    f"the checkpoint of entry {entry.sequence} signed others"
                )
                return Finding(Fault.REWRITTEN, first, line.place, message)
            report.signed_up_to = covered.sequence
        report.checkpoints += 1
        self._digests = {
            number: digest
            for number, digest in self._digests.items()
            if number > covered.sequence or number == getattr(self._head, "sequence", 0)
        }
        return None

    def _check_signature(
        self, keys: Keys, entry: Entry, covered: Head, line: _Line
    ) -> Finding | None:
        name = entry.text("public_key_sha256")
        is_signed = keys.get(name)
        if is_signed is None:
            message = (
                f"entry {entry.sequence} is a checkpoint of the key {_shown(name)}, which was not "
                "given: give the public key of each token that this log was written with, but "
                "only as you got it from the token"
            )
            return Finding(Fault.UNKNOWN_KEY, entry.sequence, line.place, message)
        try:
            signature = base64.b64decode(entry.text("signature"), validate=True)
        except (ValueError, binascii.Error):
            signature = b""
        if not is_signed(checkpoint_message(covered), signature, entry.text("mechanism")):
            message = f"entry {entry.sequence} is no checkpoint that the key {name} signed"
            return Finding(Fault.FORGED, entry.sequence, line.place, message)
        self._report.signers[name] = self._report.signers.get(name, 0) + 1
        return None

    def _end(self) -> Finding | None:
        report, head = self._report, self._head
        if self._torn:
            broken = report.last + 1
            if self._torn[-1].is_whole:
                message = f"entry {broken} was changed: it is no entry any more"
                return Finding(Fault.CHANGED, broken, self._torn[0].place, message)
            message = (
                f"the log ends inside entry {broken}: a crash, a full disk, or somebody cut it off"
            )
            return Finding(Fault.TORN, broken, self._torn[0].place, message)
        if head is not None and head.sequence > report.last:
            message = f"entries {report.last + 1} to {head.sequence} are gone from the end"
            return Finding(Fault.TRUNCATED, report.last + 1, "end of the log", message)
        if head is not None and self._digests.get(head.sequence, head.digest) != head.digest:
            message = f"entry {head.sequence} is not the one that is known from elsewhere"
            first = max(report.signed_up_to + 1, report.first)
            return Finding(Fault.REWRITTEN, first, "end of the log", message)
        if report.entries and not report.checkpoints and self._keys is not None:
            message = "no checkpoint is in the log, so nothing shows that it was not written anew"
            return Finding(Fault.UNSIGNED, report.first, "end of the log", message)
        self._note_tail()
        return None

    def _note_tail(self) -> None:
        report = self._report
        tail = report.last - max(report.signed_up_to, report.first - 1)
        if report.checkpoints:
            tail -= 1  # the last checkpoint vouches for itself
        if tail > 0:
            report.notes.append(
                f"{tail} entries at the end are chained, but not signed yet: "
                "those could be cut off or written anew"
            )


def _shown(name: str) -> str:
    return name if _DIGEST.fullmatch(name) else "(unnamed)"


def _misplaced(entry: Entry, expected: int, line: _Line, rest: Iterator[_Line]) -> Finding:
    if entry.sequence < expected:
        message = f"entry {entry.sequence} appears again"
        return Finding(Fault.REPEATED, entry.sequence, line.place, message)
    for later in rest:
        found = parse(later.content)
        if found is not None and found.sequence == expected:
            message = f"entry {expected} was moved: it comes after entry {entry.sequence}"
            return Finding(Fault.REORDERED, expected, later.place, message)
    missing = f"entries {expected} to {entry.sequence - 1} are"
    if entry.sequence - 1 == expected:
        missing = f"entry {expected} is"
    return Finding(Fault.REMOVED, expected, line.place, f"{missing} missing")


def _lines(files: Iterable[tuple[str, Iterable[bytes]]]) -> Iterator[_Line]:
    for name, lines in files:
        for number, line in enumerate(lines, start=1):
            content = line.removesuffix(b"\n")[:MAX_LINE_BYTES]
            yield _Line(content, f"{name}:{number}", line.endswith(b"\n"))
