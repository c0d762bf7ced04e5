"""`audit verify` and `audit public-key`: the audit log, judged with the token's public key."""

import hashlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from io import BufferedReader
from pathlib import Path

from cryptography.hazmat.primitives import serialization

from hsm_plugin.audit_chain import MAX_LINE_BYTES, Head, parse
from hsm_plugin.audit_signatures import PublicKey, is_signed_by, load, to_der
from hsm_plugin.audit_verification import IsSigned, Keys, Report, Verification
from hsm_plugin.client import Client
from hsm_plugin.errors import BadRequestError
from hsm_plugin.keys import AUDIT_KEY_ID

_HEAD = re.compile(r"(\d{1,18}):([0-9a-f]{64})")
_MAX_KEY_BYTES = 64 << 10

_LOOK_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Verify:
    """What is to be verified."""

    files: tuple[Path, ...]
    public_keys: tuple[Path, ...]
    """Of each token that signed; none: the socket is asked."""
    chain_only: bool
    head: str
    """`SEQUENCE:DIGEST`, or empty."""
    patience_seconds: float = 1.0
    """For the end of a last line that is being written."""

    def run(self, client: Client) -> Report:
        """Return the report; the client is asked for the key when no file has it."""
        head = _head(self.head) or self._head_of_running(client)
        keys = None if self.chain_only else self._keys(client)
        ordered = sorted(self.files, key=_first_sequence)
        verification = Verification(keys=keys, head=head)
        return verification.run(
            (str(path), _lines(path, self.patience_seconds)) for path in ordered
        )

    def _head_of_running(self, client: Client) -> Head | None:
        """Return the head that a running plugin tells, where it is asked for the key too."""
        if self.chain_only or self.public_keys:
            return None
        seen = client.inspect()
        return Head(seen.audit_sequence, seen.audit_digest) if seen.audit_sequence else None

    def _keys(self, client: Client) -> Keys:
        found = [_read_key(path) for path in self.public_keys] or [
            _loaded(client.public_key(AUDIT_KEY_ID), "the socket")
        ]
        blobs = [to_der(key) for key in found]
        return {hashlib.sha256(blob).hexdigest(): _check_with(blob) for blob in blobs}


def as_text(report: Report) -> str:
    """Return the report for people."""
    span = f"entries {report.first} to {report.last}" if report.entries else "no entries"
    head = f"{span}, {report.checkpoints} checkpoints, signed up to entry {report.signed_up_to}"
    lines = [f"key {name} signed {count} checkpoints" for name, count in report.signers.items()]
    lines += [f"note: {note}" for note in report.notes]
    if report.finding is None:
        return "\n".join([f"Whole: {head}", *lines])
    found = report.finding
    told = f"BROKEN at entry {found.entry} ({found.fault.value}): {found.message}, {found.place}"
    return "\n".join([told, f"Whole before it: {head}", *lines])


def as_json(report: Report) -> dict[str, object]:
    """Return the report for programs."""
    kept = asdict(report)
    if report.finding is not None:
        kept["finding"]["fault"] = report.finding.fault.value
    return {"whole": report.finding is None, **kept}


def public_key(client: Client) -> str:
    """Return the checkpoints' public key as PEM: keep it where the log is not."""
    key = _loaded(client.public_key(AUDIT_KEY_ID), "the socket")
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    ).decode()


def _read_key(path: Path) -> PublicKey:
    try:
        with path.open("rb") as file:
            pem = file.read(_MAX_KEY_BYTES)
    except OSError as error:
        raise BadRequestError(
            f"{path} cannot be read: {error.strerror}", hint="check the path"
        ) from None
    return _loaded(pem, str(path))


def _loaded(blob: bytes, source: str) -> PublicKey:
    key = load(blob)
    if key is None:
        raise BadRequestError(
            f"{source} holds no RSA or EC public key",
            hint="give what `hsm-plugin audit public-key` printed",
        )
    return key


def _check_with(public_key: bytes) -> IsSigned:
    def is_signed(message: bytes, signature: bytes, mechanism: str) -> bool:
        digest = hashlib.sha256(message).digest()
        return is_signed_by(public_key, mechanism, digest, signature)

    return is_signed


def _head(text: str) -> Head | None:
    if not text:
        return None
    match = _HEAD.fullmatch(text)
    if match is None:
        raise BadRequestError(
            f"{text!r} is no head of an audit log",
            hint="give SEQUENCE:DIGEST of an audit.checkpoint event in the plugin's log",
        )
    return Head(int(match[1]), match[2])


def _first_sequence(path: Path) -> int:
    """Return the number of the file's first readable entry; files are verified in this order."""
    for line in _lines(path, 0):
        entry = parse(line.removesuffix(b"\n"))
        if entry is not None:
            return entry.sequence
    return 0


def _lines(path: Path, patience_seconds: float) -> Iterator[bytes]:
    """Yield the lines that the file has now; one that is too long comes in pieces, no entries.

    A last line that is being written is waited for a moment: one that stays torn is torn.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            while file.tell() < size and (line := file.readline(MAX_LINE_BYTES + 1)):
                is_last = not line.endswith(b"\n") and file.tell() >= size
                yield _awaited(file, line, patience_seconds) if is_last else line
    except OSError as error:
        raise BadRequestError(
            f"{path} cannot be read: {error.strerror}", hint="check the path and its mode"
        ) from None


def _awaited(file: BufferedReader, line: bytes, patience_seconds: float) -> bytes:
    """Return the file's last line with its end, if that comes soon."""
    end = time.monotonic() + patience_seconds
    while not line.endswith(b"\n") and len(line) <= MAX_LINE_BYTES:
        if time.monotonic() >= end:
            return line
        time.sleep(_LOOK_SECONDS)
        line += file.readline(MAX_LINE_BYTES + 1 - len(line))
    return line
