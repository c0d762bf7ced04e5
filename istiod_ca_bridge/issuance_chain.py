"""What the issuance log says, line by line, such that no line can be changed unseen.

Each line is a JSON object that holds the SHA-256 of the line before (`prev`) and its own number
(`seq`). Checkpoints are signed by the CA key: who does not have it cannot write the log anew.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import TypeGuard

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from istiod_ca_bridge.der import MALFORMED
from istiod_ca_bridge.errors import TamperedLogError
from istiod_ca_bridge.signer import PublicKey, is_signature

MAX_LINE_BYTES = 16 << 10
BEGINNING = "0" * 64
"""`prev` of the first line of all."""

_MAX_SEQ = (1 << 63) - 1
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)

Facts = Mapping[str, str | int]


class Kind(Enum):
    """What a line is about."""

    ISSUED = "issued"
    """A certificate that left, or was about to."""

    OPENED = "opened"
    """A process began to write here."""

    CONTINUED = "continued"
    """The first line of a file after a full one."""

    CHECKPOINT = "checkpoint"
    """The CA key's signature on an earlier line's number and digest."""

    RECOVERED = "recovered"
    """Bytes at the end were not a whole line, as a crash leaves them, and were dropped."""

    GAP = "gap"
    """Certificates left while nothing could be written."""


_FIRST = {Kind.OPENED, Kind.CONTINUED}


@dataclass(frozen=True, slots=True)
class Link:
    """A line's place in the chain."""

    seq: int
    digest: str
    """SHA-256 of the line, in hexadecimal."""


ORIGIN = Link(0, BEGINNING)


@dataclass(frozen=True, slots=True)
class Line:
    """A line that was read; nothing in it is verified."""

    kind: Kind
    seq: int
    prev: str
    facts: Mapping[str, object] = field(repr=False)

    @property
    def is_first(self) -> bool:
        """Whether a file may begin with it."""
        return self.kind in _FIRST


def next_line(after: Link, kind: Kind, moment: datetime, facts: Facts) -> tuple[bytes, Link]:
    """Return the next line, with its line feed, and its place."""
    seq = after.seq + 1
    text = _canonical(
        {
            "seq": seq,
            "time": f"{moment:%FT%T}.{moment.microsecond // 1000:03d}Z",
            "kind": kind.value,
            **facts,
            "prev": after.digest,
        }
    )
    return text + b"\n", Link(seq, digest_of(text))


def digest_of(line: bytes) -> str:
    """Return the digest of a line without its line feed."""
    return hashlib.sha256(line).hexdigest()


def parsed(line: bytes) -> Line | None:
    """Return what a line without its line feed says; None when it is none of ours."""
    try:
        facts = json.loads(line)
        if _canonical(facts) != line or not _is_number(facts["seq"]):
            return None
        return Line(Kind(facts["kind"]), facts["seq"], str(facts["prev"]), facts)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def checkpoint_message(at: Link) -> bytes:
    """Return what the CA key signs for a line; no certificate or CRL begins like this."""
    return f"istiod-ca-bridge issuance log checkpoint\n{at.seq}\n{at.digest}\n".encode()


def checkpoint_facts(at: Link, public_key: PublicKey, signature: bytes) -> Facts:
    """Return what a checkpoint line says."""
    der = public_key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return {
        "of_seq": at.seq,
        "of_digest": at.digest,
        "key": base64.b64encode(der).decode(),
        "signature": base64.b64encode(signature).decode(),
    }


@dataclass(slots=True)
class Findings:
    """What an intact log holds."""

    first: int = 0
    last: int = 0
    issued: int = 0
    gaps: int = 0
    recovered: int = 0
    checkpoints: int = 0
    sealed: int = 0
    """The last line that a checkpoint covers."""

    keys: set[str] = field(default_factory=set)
    """SHA-256 of the keys that signed checkpoints."""


class Verifier:
    """Follows the chain through one file after the other."""

    def __init__(self, trusted: Sequence[bytes]) -> None:
        self._trusted = {hashlib.sha256(key).hexdigest() for key in trusted}
        """Of SubjectPublicKeyInfos; empty: a checkpoint's own key is taken as it comes."""

        self._at: Link | None = None
        self._unsealed: dict[int, str] = {}
        self.findings = Findings()

    def follow(self, file: str, lines: Iterable[bytes]) -> None:
        """Verify a file's lines, each with its line feed; TamperedLogError names the fault."""
        for number, raw in enumerate(lines, 1):
            try:
                self._verify(raw, is_first=number == 1)
            except _FaultError as fault:
                raise TamperedLogError(f"{file}:{number}: {fault}") from None

    def _verify(self, raw: bytes, *, is_first: bool) -> None:
        text = raw.removesuffix(b"\n")
        line = parsed(text) if len(raw) > len(text) else None
        if line is None:
            raise _FaultError("it is no whole line of an issuance log")
        if is_first and not line.is_first:
            raise _FaultError("the file does not begin here: lines before it are missing")
        if self._at is None:
            if line.kind is Kind.OPENED and (line.seq, line.prev) != (1, BEGINNING):
                raise _FaultError("the log does not begin here: lines before it are missing")
            self.findings.first = line.seq
        elif line.seq != self._at.seq + 1:
            raise _FaultError(f"number {line.seq} follows number {self._at.seq}")
        elif line.prev != self._at.digest:
            raise _FaultError(f"line {self._at.seq} or this one was changed: digests differ")
        if line.kind is Kind.CHECKPOINT:
            self._check(line)
        self._at = Link(line.seq, digest_of(text))
        self._unsealed[line.seq] = self._at.digest
        self.findings.last = line.seq
        self.findings.issued += line.kind is Kind.ISSUED
        self.findings.gaps += line.kind is Kind.GAP
        self.findings.recovered += line.kind is Kind.RECOVERED

    def _check(self, line: Line) -> None:
        seq = line.facts.get("of_seq")
        try:
            der = base64.b64decode(str(line.facts.get("key")), validate=True)
            signature = base64.b64decode(str(line.facts.get("signature")), validate=True)
            key = serialization.load_der_public_key(der)
        except MALFORMED:
            raise _FaultError("the checkpoint cannot be read") from None
        if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
            raise _FaultError("the checkpoint is signed by a key that no CA has")
        digest = hashlib.sha256(der).hexdigest()
        if self._trusted and digest not in self._trusted:
            raise _FaultError("the checkpoint is signed by a key of none of the CA's certificates")
        of_digest = str(line.facts.get("of_digest"))
        if not _is_number(seq) or not _DIGEST.fullmatch(of_digest):
            raise _FaultError("the checkpoint cannot be read")
        at = Link(seq, of_digest)
        if not is_signature(key, signature, checkpoint_message(at)):
            raise _FaultError("the checkpoint's signature is wrong")
        if at.seq < self.findings.first:
            return  # it seals lines that lie before those shown
        if self._unsealed.get(at.seq) != at.digest:
            raise _FaultError(f"the checkpoint is of another line {at.seq} than the one shown")
        self._unsealed = {it: link for it, link in self._unsealed.items() if it >= at.seq}
        self.findings.checkpoints += 1
        self.findings.sealed = max(self.findings.sealed, at.seq)
        self.findings.keys.add(digest)


class _FaultError(Exception):
    """The reason; never leaves this module."""


def _is_number(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 < value <= _MAX_SEQ


def _canonical(facts: Mapping[str, object]) -> bytes:
    return json.dumps(facts, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()
