"""What a caller gets: CSR + caller + policy -> grant, or a refusal that says why.

From the CSR only the public key is taken. Everything else in a certificate comes from here.
"""

import hashlib
import math
from collections.abc import Container
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from istiod_ca_bridge.der import MALFORMED
from istiod_ca_bridge.errors import (
    NotServingError,
    RefusedLifetimeError,
    RefusedRequestError,
)
from istiod_ca_bridge.identity import WorkloadIdentity
from istiod_ca_bridge.signer import PublicKey, key_der
from istiod_ca_bridge.weak_keys import weakness

MAX_CSR_BYTES = 16 << 10
CLOCK_SKEW = timedelta(minutes=2)
"""How far NotBefore lies in the past, as istiod sets it."""

SERIAL_BITS = 127
"""A serial is random, positive, and at most 20 octets (RFC 5280, section 4.1.2.2)."""

_MIN_RSA_BITS = 2048
_MAX_RSA_BITS = 8192
_MAX_RSA_EXPONENT = 1 << 32
_WEAK_HINT = "make a new key with current software"
_PEM_BEGIN = "-----BEGIN "
_PEM_LABELS = ("CERTIFICATE REQUEST-----", "NEW CERTIFICATE REQUEST-----")


@dataclass(frozen=True, slots=True)
class TtlPolicy:
    """How long certificates live."""

    default: timedelta
    maximum: timedelta
    clamp: bool = False
    """Over the maximum: the maximum is granted; else nothing is."""

    jitter: float = 0.0
    """By how much of itself a lifetime may be shorter, so that renewals do not go in step."""


@dataclass(frozen=True, slots=True)
class Grant:
    """All that a certificate will say, less the CA's own fields."""

    public_key: PublicKey
    serial: int
    not_before: datetime
    not_after: datetime
    uris: tuple[str, ...] = ()
    dns_names: tuple[str, ...] = ()
    subject_key: bytes = field(init=False, repr=False)
    """The public key as DER SubjectPublicKeyInfo."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "subject_key", key_der(self.public_key))


def granted_lifetime(requested_seconds: int, policy: TtlPolicy, draw: float = 0.0) -> timedelta:
    """Return the lifetime to grant; 0 asks for the default.

    `draw`: a random number from 0 to 1, how much of the jitter to take off.
    """
    if requested_seconds < 0:
        raise RefusedLifetimeError("the requested lifetime is negative")
    lifetime = policy.default
    if requested_seconds > policy.maximum.total_seconds():
        if not policy.clamp:
            raise RefusedLifetimeError(
                f"the requested lifetime of {requested_seconds}s is over the maximum of "
                f"{int(policy.maximum.total_seconds())}s"
            )
        lifetime = policy.maximum
    elif requested_seconds:
        lifetime = timedelta(seconds=requested_seconds)
    return timedelta(seconds=math.ceil(lifetime.total_seconds() * (1 - policy.jitter * draw)))


def check_not_listed(key: bytes, blocked: Container[bytes], own_keys: Container[bytes]) -> None:
    """Return when the key is neither a CA's of ours nor listed.

    Keys are DER SubjectPublicKeyInfos, `blocked` their SHA-256 digests. RefusedRequestError
    otherwise.
    """
    if hashlib.sha256(key).digest() in blocked:
        raise RefusedRequestError("the CSR's key is on this CA's list of keys to refuse")
    if key in own_keys:
        raise RefusedRequestError("the CSR's key is that of a CA of this mesh")


def grant_workload(
    public_key: PublicKey,
    identity: WorkloadIdentity,
    lifetime: timedelta,
    *,
    now: datetime,
    ca_not_after: datetime,
    serial: int,
) -> Grant:
    """Return the grant of a workload certificate: the caller's identity and no other name."""
    not_before, not_after = validity(lifetime, now=now, ca_not_after=ca_not_after)
    return Grant(public_key, serial, not_before, not_after, uris=(str(identity),))


def grant_server(
    public_key: PublicKey,
    dns_names: tuple[str, ...],
    lifetime: timedelta,
    *,
    now: datetime,
    ca_not_after: datetime,
    serial: int,
) -> Grant:
    """Return the grant of a server certificate that the CA makes for its own names."""
    not_before, not_after = validity(lifetime, now=now, ca_not_after=ca_not_after)
    return Grant(public_key, serial, not_before, not_after, dns_names=dns_names)


def validity(
    lifetime: timedelta, *, now: datetime, ca_not_after: datetime
) -> tuple[datetime, datetime]:
    """Return NotBefore and NotAfter in whole seconds, the latter never past the CA's."""
    if now >= ca_not_after:
        raise NotServingError(f"the CA certificate expired at {ca_not_after:%FT%TZ}")
    moment = now.replace(microsecond=0)
    return moment - CLOCK_SKEW, min(moment + lifetime, ca_not_after)


def requested_key(csr_pem: str) -> PublicKey:
    """Return the public key of a CSR that proves possession of a strong private key.

    RefusedRequestError for anything else, also for one that asks to become a CA.
    """
    csr = _parse(csr_pem)
    key = _strong_key(csr)
    try:
        proven = _is_proven(csr, key)
        extensions = csr.extensions
    except (InvalidSignature, *MALFORMED):
        raise RefusedRequestError("the CSR is malformed or uses an unknown algorithm") from None
    if not proven:
        raise RefusedRequestError("the CSR's signature was not made by the key in it")
    for extension in extensions:
        if isinstance(extension.value, x509.BasicConstraints) and extension.value.ca:
            raise RefusedRequestError("the CSR asks for a CA certificate, which is never issued")
    if fault := weakness(key):
        raise RefusedRequestError(f"the CSR's key is weak: {fault}", hint=_WEAK_HINT)
    return key


def _is_proven(csr: x509.CertificateSigningRequest, key: PublicKey) -> bool:
    """Return whether the key in the CSR signed it."""
    algorithm = csr.signature_algorithm_parameters
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(algorithm, ec.ECDSA):
        return csr.is_signature_valid
    try:  # as that does, but with the key that is parsed already
        key.verify(csr.signature, csr.tbs_certrequest_bytes, algorithm)
    except InvalidSignature:
        return False
    return True


def _parse(csr_pem: str) -> x509.CertificateSigningRequest:
    if not csr_pem:
        raise RefusedRequestError("the CSR is empty")
    if len(csr_pem) > MAX_CSR_BYTES:
        raise RefusedRequestError(f"the CSR has more than {MAX_CSR_BYTES} bytes")
    text = csr_pem.strip()
    label = text.removeprefix(_PEM_BEGIN)
    if label == text or text.count(_PEM_BEGIN) != 1 or not label.startswith(_PEM_LABELS):
        raise RefusedRequestError("the CSR is not one PEM block of a certificate request")
    try:
        return x509.load_pem_x509_csr(text.encode("ascii"))
    except MALFORMED:
        raise RefusedRequestError("the CSR is not a PKCS#10 request in PEM") from None


def _strong_key(csr: x509.CertificateSigningRequest) -> PublicKey:
    try:
        key = csr.public_key()
    except MALFORMED:
        raise RefusedRequestError("the CSR's key is malformed or of an unknown kind") from None
    if isinstance(key, rsa.RSAPublicKey):
        if (
            _MIN_RSA_BITS <= key.key_size <= _MAX_RSA_BITS
            and key.public_numbers().e < _MAX_RSA_EXPONENT
        ):
            return key
    elif isinstance(key, ec.EllipticCurvePublicKey) and isinstance(
        key.curve, ec.SECP256R1 | ec.SECP384R1
    ):
        return key
    raise RefusedRequestError(
        "the CSR's key is not allowed",
        hint=f"use RSA of {_MIN_RSA_BITS} to {_MAX_RSA_BITS} bits, P-256 or P-384",
    )
