"""Entries of the audit log: one JSON object a line, each with the SHA-256 of the line before it.

A chain alone shows what was changed, removed or moved by somebody who did not write it anew to
its end. Checkpoints, signed by a key that stays in the token, show that too.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import cast

GENESIS = "0" * 64
"""What the first entry has in the place of a digest."""

MAX_LINE_BYTES = 16 << 10
_MAX_NUMBER = (1 << 63) - 1
_TITLE = b"istio-hsm audit checkpoint 1"

Field = str | int | float | Mapping[str, str | int]
Fields = Mapping[str, Field]


class Kind(Enum):
    """What an entry tells."""

    START = "start"
    USE = "use"
    """A call: who, which key, what for, and what came of it."""
    STOCK = "stock"
    """DEKs that were made ahead, or that nobody got: see hsm_plugin.dek_supply."""
    CHECKPOINT = "checkpoint"
    LOST = "lost"
    """Entries that could not be written, and how many."""
    RECOVERED = "recovered"
    """The bytes before this entry are the rest of one that a crash or a full disk cut off."""
    CUT = "cut"
    """The log ended earlier than it had before the plugin's start."""
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Head:
    """The last entry of a chain."""

    sequence: int
    digest: str

    def follow(self, kind: Kind, moment: datetime, fields: Fields) -> tuple[bytes, "Head"]:
        """Return the line of the next entry, its newline with it, and the new head."""
        entry = {
            "seq": self.sequence + 1,
            "prev": self.digest,
            "time": _text(moment),
            "kind": kind.value,
            **fields,
        }
        line = json.dumps(entry, separators=(",", ":")).encode()
        return line + b"\n", Head(self.sequence + 1, digest_of(line))


EMPTY = Head(0, GENESIS)


@dataclass(frozen=True, slots=True)
class Entry:
    """A line that was read."""

    sequence: int
    previous: str
    kind: Kind
    digest: str
    """Of this line: what the next entry must hold."""
    fields: Mapping[str, object]

    @property
    def head(self) -> Head:
        """The chain's head when this is its last entry."""
        return Head(self.sequence, self.digest)

    def text(self, name: str) -> str:
        """Return a field of text; empty when there is none."""
        value = self.fields.get(name)
        return value if isinstance(value, str) else ""

    def number(self, name: str) -> int:
        """Return a field that is a whole number; -1 when there is none."""
        value = self.fields.get(name)
        return value if type(value) is int and 0 <= value <= _MAX_NUMBER else -1


def digest_of(line: bytes) -> str:
    """Return the SHA-256 of a line without its newline."""
    return hashlib.sha256(line).hexdigest()


def parse(line: bytes) -> Entry | None:
    """Return the entry of a line without its newline; None when it is none."""
    try:
        fields = json.loads(line)
        sequence, previous, kind = fields["seq"], fields["prev"], Kind(fields["kind"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if type(sequence) is not int or not 1 <= sequence <= _MAX_NUMBER:
        return None
    if not isinstance(previous, str):
        return None
    return Entry(sequence, previous, kind, digest_of(line), cast("dict[str, object]", fields))


def checkpoint_message(covered: Head) -> bytes:
    """Return what a checkpoint signs: that the chain had this head."""
    return b"%s\n%d\n%s\n" % (_TITLE, covered.sequence, covered.digest.encode())


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
