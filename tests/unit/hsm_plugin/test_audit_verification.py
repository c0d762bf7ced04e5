"""Whatever is done to an audit log, the verification names the first broken entry and the deed."""

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from hsm_plugin.audit_chain import EMPTY, Fields, Head, Kind, checkpoint_message, parse
from hsm_plugin.audit_signatures import is_signed_by, to_der
from hsm_plugin.audit_verification import Fault, IsSigned, Report, Verification

_NOW = datetime(2026, 1, 1, tzinfo=UTC)
_KEY = ec.generate_private_key(ec.SECP256R1())
_OTHER = ec.generate_private_key(ec.SECP256R1())


class Log:
    """A chain in memory."""

    def __init__(self, key: ec.EllipticCurvePrivateKey = _KEY) -> None:
        self.lines: list[bytes] = []
        self.head = EMPTY
        self._key = key

    def add(self, kind: Kind = Kind.USE, **fields: str | int) -> "Log":
        kept: Fields = fields
        line, self.head = self.head.follow(kind, _NOW, kept)
        self.lines.append(line)
        return self

    def checkpoint(self) -> "Log":
        covered = self.head
        signature = self._key.sign(checkpoint_message(covered), ec.ECDSA(hashes.SHA256()))
        return self.add(
            Kind.CHECKPOINT,
            covers=covered.sequence,
            digest=covered.digest,
            mechanism="ECDSA_SHA256",
            public_key_sha256=name_of(self._key),
            signature=base64.b64encode(signature).decode(),
        )


def name_of(key: ec.EllipticCurvePrivateKey) -> str:
    return hashlib.sha256(to_der(key.public_key())).hexdigest()


def check_with(key: ec.EllipticCurvePrivateKey) -> IsSigned:
    def is_signed(message: bytes, signature: bytes, mechanism: str) -> bool:
        digest = hashlib.sha256(message).digest()
        return is_signed_by(to_der(key.public_key()), mechanism, digest, signature)

    return is_signed


def verified(
    lines: list[bytes],
    *,
    head: Head | None = None,
    signed: bool = True,
    keys: Sequence[ec.EllipticCurvePrivateKey] = (_KEY,),
) -> Report:
    known = {name_of(key): check_with(key) for key in keys}
    verification = Verification(keys=known if signed else None, head=head)
    return verification.run([("audit.log", lines)])


def sound() -> Log:
    """Entries 1 to 9: a checkpoint at 5, and one at 9."""
    log = Log()
    for number in range(4):
        log.add(key=f"k{number}")
    log.checkpoint()
    for number in range(3):
        log.add(key=f"l{number}")
    return log.checkpoint()


def changed(line: bytes, **fields: object) -> bytes:
    return json.dumps({**json.loads(line), **fields}, separators=(",", ":")).encode() + b"\n"


def test_a_log_that_nobody_touched_is_whole() -> None:
    report = verified(sound().lines)
    assert report.finding is None
    assert (report.entries, report.first, report.last) == (9, 1, 9)
    assert (report.checkpoints, report.signed_up_to) == (2, 8)
    assert report.notes == []


def test_files_are_one_log() -> None:
    lines = sound().lines
    verification = Verification(keys={name_of(_KEY): check_with(_KEY)}, head=None)
    report = verification.run([("old", lines[:4]), ("new", lines[4:])])
    assert report.finding is None
    assert report.entries == 9


@pytest.mark.parametrize(
    ("deed", "fault", "entry"),
    [
        (lambda it: [*it[:2], changed(it[2], key="x"), *it[3:]], Fault.CHANGED, 3),
        (lambda it: [changed(it[0], prev="1" * 64), *it[1:]], Fault.CHANGED, 1),
        (lambda it: [*it[:2], changed(it[2], prev="1" * 64), *it[3:]], Fault.CHANGED, 3),
        (lambda it: [*it[:2], b"no entry\n", *it[3:]], Fault.CHANGED, 3),
        (lambda it: [*it[:8], b"no entry\n"], Fault.CHANGED, 9),
        (lambda it: [*it[:2], *it[3:]], Fault.REMOVED, 3),
        (lambda it: [*it[:2], *it[5:]], Fault.REMOVED, 3),
        (lambda it: [*it[:2], it[3], it[2], *it[4:]], Fault.REORDERED, 3),
        (lambda it: [*it[:3], it[1], *it[3:]], Fault.REPEATED, 2),
        (lambda it: [*it[:8], it[8][:40]], Fault.TORN, 9),
    ],
)
def test_the_first_broken_entry_is_named_with_what_befell_it(
    deed: Callable[[list[bytes]], list[bytes]], fault: Fault, entry: int
) -> None:
    finding = verified(deed(sound().lines)).finding
    assert finding is not None
    assert (finding.fault, finding.entry) == (fault, entry)


def test_what_was_written_anew_with_a_sound_chain_is_not_what_was_signed() -> None:
    log = sound()
    forged = Log().add(key="k0").add(key="other").add(key="k2").add(key="k3")
    for line in log.lines[4:]:
        entry = parse(line[:-1])
        assert entry is not None
        fields = {
            name: value
            for name, value in json.loads(line).items()
            if name not in {"seq", "prev", "time", "kind"}
        }
        forged.add(entry.kind, **fields)
    assert verified(forged.lines, signed=False).finding is not None
    finding = verified(forged.lines).finding
    assert finding is not None
    assert (finding.fault, finding.entry) == (Fault.REWRITTEN, 1)


def two_tokens() -> list[bytes]:
    """Entries 1 to 6: a checkpoint at 3, and one at 6 by the key of another token."""
    log = Log().add().add().checkpoint()
    other = Log(_OTHER)
    other.head = log.head
    return [*log.lines, *other.add().add().checkpoint().lines]


def test_checkpoints_of_several_tokens_are_accepted_and_counted_by_their_keys() -> None:
    report = verified(two_tokens(), keys=[_KEY, _OTHER])
    assert report.finding is None
    assert report.signers == {name_of(_KEY): 1, name_of(_OTHER): 1}


def test_a_checkpoint_of_a_key_that_was_not_given_is_told_with_its_name() -> None:
    report = verified(two_tokens())
    assert report.finding is not None
    assert (report.finding.fault, report.finding.entry) == (Fault.UNKNOWN_KEY, 6)
    assert name_of(_OTHER) in report.finding.message
    assert report.signers == {name_of(_KEY): 1}


def test_a_checkpoint_that_names_the_key_but_was_signed_by_another_is_forged() -> None:
    *lines, last = Log(_OTHER).add().add().checkpoint().lines
    finding = verified([*lines, changed(last, public_key_sha256=name_of(_KEY))]).finding
    assert finding is not None
    assert (finding.fault, finding.entry) == (Fault.FORGED, 3)


def test_a_checkpoint_without_a_key_is_of_no_known_key() -> None:
    *lines, last = Log().add().checkpoint().lines
    finding = verified([*lines, changed(last, public_key_sha256="\x1b[31m")]).finding
    assert finding is not None
    assert finding.fault is Fault.UNKNOWN_KEY
    assert "\x1b" not in finding.message


def test_a_log_without_any_checkpoint_proves_nothing() -> None:
    lines = Log().add().add().lines
    finding = verified(lines).finding
    assert finding is not None
    assert finding.fault is Fault.UNSIGNED
    assert verified(lines, signed=False).finding is None


def test_the_unsigned_tail_is_told_and_cutting_it_off_shows_by_a_known_head() -> None:
    log = sound().add().add()
    known = log.head
    report = verified(log.lines, head=known)
    assert report.finding is None
    assert "2 entries at the end are chained, but not signed" in report.notes[0]
    finding = verified(log.lines[:-1], head=known).finding
    assert finding is not None
    assert (finding.fault, finding.entry) == (Fault.TRUNCATED, 11)


def test_a_tail_that_was_replaced_shows_by_a_known_head() -> None:
    known = sound().add(key="mine").head
    finding = verified(sound().add(key="other").lines, head=known).finding
    assert finding is not None
    assert (finding.fault, finding.entry) == (Fault.REWRITTEN, 9)


def test_a_cut_that_the_plugin_met_at_its_start_is_a_finding() -> None:
    lines = sound().add(Kind.CUT, expected=20, digest="0" * 64, found=9).lines
    finding = verified(lines).finding
    assert finding is not None
    assert (finding.fault, finding.entry) == (Fault.TRUNCATED, 10)


def test_what_a_crash_cut_off_is_noted_when_the_next_entry_tells_of_it() -> None:
    log = sound()
    torn = log.lines[1][:30]
    log.add(Kind.RECOVERED, torn_bytes=30, torn_sha256=_sha256(torn))
    told = [*log.lines[:9], torn + b"\n", log.lines[9]]
    report = verified(told)
    assert report.finding is None
    finding = verified([*told[:9], torn[:-1] + b"\n", told[10]]).finding
    assert finding is not None
    assert (finding.fault, finding.entry) == (Fault.CHANGED, 10)
    assert "30 bytes of an entry that a crash cut off" in report.notes[0]


def test_a_log_whose_beginning_was_not_given_says_where_it_begins() -> None:
    report = verified(sound().lines[2:])
    assert report.finding is None
    assert "begins at entry 3" in report.notes[0]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"7",
        b'{"seq":"1","prev":"","kind":"use"}',
        b'{"seq":true}',
        b"\xff",
        b"[" * 9999,
    ],
)
def test_a_line_that_is_no_entry_is_none(line: bytes) -> None:
    assert parse(line) is None


def _sha256(data: bytes) -> str:
    digest = hashes.Hash(hashes.SHA256())
    digest.update(data)
    return digest.finalize().hex()


@pytest.mark.parametrize("digest", ["\ud800", "", "0" * 63, "é" * 64, "A" * 64])
def test_a_checkpoint_of_no_digest_is_forged(digest: str) -> None:
    log = Log().add()
    log.add(Kind.CHECKPOINT, covers=1, digest=digest, public_key_sha256=name_of(_KEY))
    finding = verified(log.lines).finding
    assert finding is not None
    assert (finding.fault, finding.entry) == (Fault.FORGED, 2)


def test_a_number_of_thousands_of_digits_is_none() -> None:
    log = Log().add().add(Kind.CUT, found=10**4299, expected=10**4299)
    finding = verified(log.lines).finding
    assert finding is not None
    assert finding.fault is Fault.TRUNCATED
    assert len(finding.message) < 200
