"""The rotation of the CA key: facts -> the next step, or why there is none yet.

    PREPARE     the next key is made in the HSM, its CSR waits to be signed
    DISTRIBUTE  its chain is verified and frozen here; both roots go to everyone
    ACTIVATE    the one write that decides: the next key signs; the Secrets are moved
    OVERLAP     the Secrets hold the new key; the old root is still trusted
    RETIRE      one root is trusted no more; what is left of its key is cleared away

The record is one Secret, so that each change of phase is one write. A wish of the operator is
answered once: it is done, or taken back with the reason.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import TypeVar

from cryptography.hazmat.primitives import serialization

from istiod_ca_bridge.der import MALFORMED
from istiod_ca_bridge.errors import CorruptSecretError
from istiod_ca_bridge.signer import KeyAlgorithm, algorithm_of, key_der
from istiod_ca_bridge.store import ACTIVE, NEXT, ROTATION_SECRET, Slot

T = TypeVar("T")

SLACK = timedelta(minutes=10)
"""Added to every wait: kubelets renew a mounted ConfigMap in minutes, and clocks differ."""

_NAMED = 5
_MAX_VALUE_BYTES = 4 << 10
_MAX_ANSWER = 1000
_SECONDS = re.compile(r"[0-9]{1,10}", re.ASCII)
_FIRST_YEAR, _LAST_YEAR = 1970, 9000
"""Moments that a wait of any lifetime can be added to."""


class Phase(Enum):
    """How far the rotation is."""

    PREPARE = "prepare"
    DISTRIBUTE = "distribute"
    ACTIVATE = "activate"
    OVERLAP = "overlap"
    RETIRE = "retire"


class Wish(Enum):
    """What the operator asked for and was not answered yet."""

    NONE = "none"
    ACTIVATE = "activate"
    RETIRE = "retire"
    """And keep the old key in the HSM."""

    RETIRE_AND_DESTROY = "retire-and-destroy"
    ABORT = "abort"
    """Before the next key signs: give it up, and destroy it."""


class Step(Enum):
    """What is to be done next; each may be done twice."""

    MAKE_KEY = "make the next key"
    NOTE_KEY = "note the next key's public half"
    WRITE_CSR = "write the next key's CSR"
    DISTRIBUTE = "trust both roots"
    NOTE_DISTRIBUTED = "note that both roots are everywhere"
    ACTIVATE = "let the next key sign"
    SETTLE = "move the Secrets"
    CLEAR_NEXT = "clear away the next key's Secrets"
    RETIRE = "trust the old root no more"
    ABORT = "give the next key up"
    FINISH = "clear away what is left"


@dataclass(frozen=True, slots=True)
class Gate:
    """Why the rotation does not go on now."""

    reason: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.reason} ({self.hint})" if self.hint else self.reason


@dataclass(frozen=True, slots=True)
class Rotation:
    """The record of a rotation under way."""

    phase: Phase
    algorithm: KeyAlgorithm
    started_at: datetime
    longest_lifetime: timedelta
    """Of a certificate issued before or during the rotation."""

    distributed_at: datetime | None = None
    activated_at: datetime | None = None
    next_key: bytes = field(default=b"", repr=False)
    """Its public half as DER SubjectPublicKeyInfo, from before there is a CSR of it: no replica
    issues a leaf for it."""

    next_chain: bytes = field(default=b"", repr=False)
    """As it was verified: what is distributed is what is activated."""

    old_chain: bytes = field(default=b"", repr=False)
    """Of the key that signed before, with all the roots that were trusted."""

    old_expires_at: datetime | None = None
    """When the old CA certificate expires, and with it all that it issued."""

    wish: Wish = Wish.NONE
    answer: str = ""
    """Why the last wish was not granted."""

    @property
    def slot(self) -> Slot:
        """The Secrets of the key that signs."""
        return NEXT if self.phase is Phase.ACTIVATE else ACTIVE

    @property
    def further_roots(self) -> bytes:
        """What is trusted along with the roots of the chain that serves."""
        match self.phase:
            case Phase.DISTRIBUTE:
                return self.next_chain
            case Phase.ACTIVATE | Phase.OVERLAP:
                return self.old_chain
            case _:
                return b""

    @property
    def listed_chains(self) -> tuple[bytes, ...]:
        """The chains whose keys sign lists of revocations, whichever of them signs leaves."""
        return (self.next_chain,) if self.phase is Phase.DISTRIBUTE else self.shown_chains

    @property
    def shown_chains(self) -> tuple[bytes, ...]:
        """The chains that workloads may show."""
        if self.phase not in {Phase.ACTIVATE, Phase.OVERLAP}:
            return ()
        return (self.next_chain, self.old_chain)

    def values(self) -> dict[str, bytes]:
        """Return the Secret's values."""
        texts = {
            "phase": self.phase.value,
            "key-algorithm": self.algorithm.value,
            "started-at": _text(self.started_at),
            "longest-lifetime-seconds": str(int(self.longest_lifetime.total_seconds())),
            "distributed-at": _text(self.distributed_at),
            "activated-at": _text(self.activated_at),
            "old-expires-at": _text(self.old_expires_at),
            "wish": self.wish.value,
            "answer": _short(self.answer),
        }
        blobs = {
            "next-key.pem": _key_pem(self.next_key),
            "next-chain.pem": self.next_chain,
            "old-chain.pem": self.old_chain,
        }
        return {key: text.encode() for key, text in texts.items()} | blobs


@dataclass(frozen=True, slots=True)
class Facts:
    """What is really there."""

    now: datetime
    has_next_key: bool = False
    next_key: bytes = b""
    """The public half of that key, as the record has it."""

    has_next_csr: bool = False
    next_chain_fault: str | None = "istio-ca-cert-next is not there"
    """Why the chain of the next key cannot be used; None: it is verified."""

    lacking: tuple[str, ...] | None = None
    """Who does not trust both roots yet; None: it is not known."""

    unlisted: str = ""
    """The CAs of the next chain without a published list of revocations, where there are any."""

    served_by_old: tuple[str, ...] = ()
    """What is still served with the old key."""


def next_step(rotation: Rotation, facts: Facts) -> Step | Gate:
    """Return what is to be done now, or why nothing is."""
    if rotation.wish is Wish.ABORT and rotation.phase in {Phase.PREPARE, Phase.DISTRIBUTE}:
        return Step.ABORT
    match rotation.phase:
        case Phase.PREPARE:
            return _prepare(rotation, facts)
        case Phase.DISTRIBUTE:
            return _distribute(rotation, facts)
        case Phase.ACTIVATE:
            return Step.SETTLE
        case Phase.OVERLAP:
            return _overlap(rotation, facts)
        case Phase.RETIRE:
            return Step.FINISH


def _prepare(rotation: Rotation, facts: Facts) -> Step | Gate:
    if not facts.has_next_key:
        return Step.MAKE_KEY
    if rotation.next_key != facts.next_key:
        return Step.NOTE_KEY
    if not facts.has_next_csr:
        return Step.WRITE_CSR
    if facts.next_chain_fault is not None:
        return Gate(
            f"the next key has no usable chain: {facts.next_chain_fault}",
            hint=f"sign the CSR in {NEXT.csr}, import its root, write {NEXT.certificate}",
        )
    return Step.DISTRIBUTE


def _distribute(rotation: Rotation, facts: Facts) -> Step | Gate:
    if (gate := _untrusting(facts)) is not None:
        return gate
    if rotation.distributed_at is None:
        return Step.NOTE_DISTRIBUTED
    may_at = rotation.distributed_at + rotation.longest_lifetime + SLACK
    if facts.now < may_at:
        return Gate(
            f"until {may_at:%FT%TZ} there may be workloads that trust the old root only",
            hint="each learns of both when its certificate is renewed",
        )
    if facts.next_chain_fault is not None:
        return Gate(f"the next key's chain cannot be served with: {facts.next_chain_fault}")
    if rotation.wish is not Wish.ACTIVATE:
        return Gate("both roots are trusted everywhere", hint="say `rotation activate`")
    return Step.ACTIVATE


def _untrusting(facts: Facts) -> Gate | None:
    if facts.lacking is None:
        return Gate("it is not known whether both roots are in every namespace")
    if not facts.lacking:
        return _unlisted(facts)
    more = len(facts.lacking) - _NAMED
    named = ", ".join(facts.lacking[:_NAMED]) + (f" and {more} more" if more > 0 else "")
    return Gate(f"not both roots are trusted yet by {named}")


def _unlisted(facts: Facts) -> Gate | None:
    if not facts.unlisted:
        return None
    return Gate(
        f"no list of revocations is published of {facts.unlisted}",
        hint="add it to issuer-crls.pem in the Secret istio-ca-revocations",
    )


def _overlap(rotation: Rotation, facts: Facts) -> Step | Gate:
    if facts.has_next_key or facts.has_next_csr:
        return Step.CLEAR_NEXT
    if rotation.wish is Wish.ABORT:
        return Gate("it is too late to abort: the next key signs")
    if facts.served_by_old:
        return Gate(f"the old key's certificate is still served by {facts.served_by_old[0]}")
    may_at = (rotation.activated_at or facts.now) + rotation.longest_lifetime + SLACK
    if rotation.old_expires_at is not None:
        may_at = min(may_at, rotation.old_expires_at + SLACK)
    if facts.now < may_at:
        return Gate(f"until {may_at:%FT%TZ} certificates under the old root may be valid")
    if rotation.wish not in {Wish.RETIRE, Wish.RETIRE_AND_DESTROY}:
        return Gate("no valid certificate needs the old root", hint="say `rotation retire`")
    return Step.RETIRE


def rotation_of(values: Mapping[str, bytes]) -> Rotation:
    """Return the record in the Secret; CorruptSecretError names what is wrong."""
    try:
        record = Rotation(
            phase=_one(values, "phase", Phase),
            algorithm=_one(values, "key-algorithm", KeyAlgorithm),
            started_at=_one(values, "started-at", _moment),
            longest_lifetime=_one(values, "longest-lifetime-seconds", _lifetime),
            distributed_at=_optional(values, "distributed-at", _moment),
            activated_at=_optional(values, "activated-at", _moment),
            next_key=_optional(values, "next-key.pem", _key) or b"",
            next_chain=values.get("next-chain.pem", b""),
            old_chain=values.get("old-chain.pem", b""),
            old_expires_at=_optional(values, "old-expires-at", _moment),
            wish=_one(values, "wish", Wish),
            answer=_one(values, "answer", _short),
        )
    except ValueError as error:
        raise CorruptSecretError(
            f"{ROTATION_SECRET} cannot be read: {error}",
            hint="restore it from a backup; until then the CA goes on as it is",
        ) from None
    if record.phase in {Phase.ACTIVATE, Phase.OVERLAP} and not record.old_chain:
        # Followed, it would have nobody trust the old root, whose leaves are still shown.
        raise CorruptSecretError(
            f"{ROTATION_SECRET} cannot be read: there is no old-chain.pem",
            hint="end the rotation with the version of the bridge that began it, then upgrade"
            if "old-roots.pem" in values
            else "restore it from a backup; until then the CA goes on as it is",
        )
    return record


def _one(values: Mapping[str, bytes], key: str, parse: Callable[[str], T]) -> T:
    """Return what a value says; ValueError names its key, and does not quote what may be long."""
    value = values.get(key, b"")
    if len(value) > _MAX_VALUE_BYTES:
        raise ValueError(f"{key} has more than {_MAX_VALUE_BYTES} bytes")
    try:
        return parse(value.decode("utf-8").strip())
    except ValueError:
        raise ValueError(f"{key} is none of those that are written there") from None


def _optional(values: Mapping[str, bytes], key: str, parse: Callable[[str], T]) -> T | None:
    return _one(values, key, parse) if values.get(key, b"").strip() else None


def _short(text: str) -> str:
    return text[:_MAX_ANSWER].strip()


def _key(text: str) -> bytes:
    try:
        key = serialization.load_pem_public_key(text.encode())
    except MALFORMED:
        raise ValueError(text) from None
    if algorithm_of(key) is None:
        raise ValueError(text)
    return key_der(key)  # type: ignore[arg-type]  # it is of one of our algorithms


def _key_pem(key: bytes) -> bytes:
    if not key:
        return b""
    return serialization.load_der_public_key(key).public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _lifetime(text: str) -> timedelta:
    if not _SECONDS.fullmatch(text):
        raise ValueError(text)
    return timedelta(seconds=int(text))


def _text(moment: datetime | None) -> str:
    return "" if moment is None else f"{moment.astimezone(UTC):%FT%TZ}"


def _moment(text: str) -> datetime:
    moment = datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    if not _FIRST_YEAR <= moment.year <= _LAST_YEAR:
        raise ValueError(text)
    return moment
