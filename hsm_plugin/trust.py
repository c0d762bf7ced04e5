"""Verification of a certificate chain against the imported roots (RFC 5280, section 6.1).

Checked: every signature, every validity at the given time, CA flag, path length and
keyCertSign of each issuer, its name constraints, strength of keys and hashes, critical extensions
that are not understood, and that the path ends at an imported root, byte for byte.
"""

from collections.abc import Iterator
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtensionOID

from hsm_plugin.certificate_name import name_of
from hsm_plugin.errors import NoTrustedRootError, RejectedChainError
from hsm_plugin.name_constraints import check_name_constraints

MAX_CERTIFICATES = 16
MAX_CERTIFICATE_BYTES = 64 << 10
_MAX_STEPS = 64
"""Certificates put on a path, taken off again included: bounds what a hostile chain costs."""
MIN_RSA_BITS = 2048
_STRONG_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
_STRONG_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
_UNDERSTOOD = {
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.KEY_USAGE,
    ExtensionOID.EXTENDED_KEY_USAGE,
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    ExtensionOID.NAME_CONSTRAINTS,
}
MALFORMED = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""All that `cryptography` raises about bytes that are no certificate or request."""

_PEM_MARK = b"-----BEGIN CERTIFICATE-----"
_FORM_HINT = "give one X.509 certificate, PEM or DER"


def load_certificate(blob: bytes, name: str) -> x509.Certificate:
    """Return the one certificate in a PEM or DER blob; RejectedChainError otherwise."""
    if not blob:
        raise RejectedChainError(f"{name} is empty", hint=_FORM_HINT)
    if len(blob) > MAX_CERTIFICATE_BYTES:
        raise RejectedChainError(
            f"{name} has {len(blob)} bytes, more than {MAX_CERTIFICATE_BYTES}", hint=_FORM_HINT
        )
    if blob.count(_PEM_MARK) > 1:
        raise RejectedChainError(f"{name} holds more than one certificate", hint="pass one each")
    try:
        if _PEM_MARK in blob:
            certificate = x509.load_pem_x509_certificate(blob)
        else:
            certificate = x509.load_der_x509_certificate(blob)
        _ = certificate.subject, certificate.issuer  # read lazily: a name may be malformed
    except MALFORMED:
        raise RejectedChainError(
            f"{name} is not a certificate in PEM or DER", hint=_FORM_HINT
        ) from None
    return certificate


def check_root(root: x509.Certificate, now: datetime) -> None:
    """Return when the certificate may be a trust anchor; RejectedChainError says why not."""
    _check_validity(root, now)
    _check_strength(root)
    _check_issuer(root, below=0)
    if root.issuer != root.subject or not _signed_by(root, root):
        raise RejectedChainError(
            f"{name_of(root)} is not self-signed",
            hint="import the root itself, not an intermediate",
        )


def verify_chain(
    certificates: list[x509.Certificate], roots: list[x509.Certificate], now: datetime
) -> list[x509.Certificate]:
    """Return the verified path, target first and root last.

    `certificates`: intermediates and root in any order, the target last. NoTrustedRootError
    without roots, RejectedChainError with the first reason found otherwise.
    """
    if not roots:
        raise NoTrustedRootError(
            "no root certificate is imported", hint="run `hsm-plugin import-ca -f root.pem`"
        )
    if not certificates:
        raise RejectedChainError("no certificate was given")
    if len(certificates) > MAX_CERTIFICATES:
        raise RejectedChainError(f"more than {MAX_CERTIFICATES} certificates were given")
    *others, target = certificates
    return _verified([target], [*roots, *others], roots, now, iter(range(_MAX_STEPS)))


def _verified(
    path: list[x509.Certificate],
    candidates: list[x509.Certificate],
    roots: list[x509.Certificate],
    now: datetime,
    steps: Iterator[int],
) -> list[x509.Certificate]:
    """Return the first continuation that passes every check; raises the first one's refusal.

    A CA renewed with its key, or signed by two others, opens more than one way.
    """
    if _is_anchor(path[-1], roots):
        _check_path(path, now)
        return path
    refusal: RejectedChainError | None = None
    for issuer in _issuers_of(path[-1], candidates, path):
        if next(steps, None) is None:
            raise RejectedChainError("the certificates can be put together in too many ways")
        try:
            return _verified([*path, issuer], candidates, roots, now, steps)
        except RejectedChainError as error:
            refusal = refusal or error
    raise refusal or RejectedChainError("no issuer was found")


def _check_path(path: list[x509.Certificate], now: datetime) -> None:
    for certificate in path:
        _check_validity(certificate, now)
        _check_strength(certificate)
        _check_extensions(certificate)
    for below, issuer in enumerate(path[1:]):
        between = [entry for entry in path[1 : below + 1] if entry.issuer != entry.subject]
        _check_issuer(issuer, below=len(between))
    check_name_constraints(path)


def _is_anchor(certificate: x509.Certificate, roots: list[x509.Certificate]) -> bool:
    return any(certificate == root for root in roots)


def _issuers_of(
    certificate: x509.Certificate,
    candidates: list[x509.Certificate],
    path: list[x509.Certificate],
) -> list[x509.Certificate]:
    """Return those not on the path yet whose name and key are the issuer's: at least one."""
    named = [entry for entry in candidates if entry.subject == certificate.issuer]
    issuers = [entry for entry in named if entry not in path and _signed_by(certificate, entry)]
    if issuers:
        return issuers
    if not named:
        raise RejectedChainError(
            f"the issuer of {name_of(certificate)} is neither imported nor in the chain",
            hint="send the whole chain, and import its root",
        )
    raise RejectedChainError(
        f"the signature on {name_of(certificate)} was not made by any issuer of that name",
        hint="the chain ends at another root than the imported one",
    )


def _signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, *MALFORMED):
        return False
    return True


def _check_validity(certificate: x509.Certificate, now: datetime) -> None:
    moment = now.astimezone(UTC)
    if moment < certificate.not_valid_before_utc:
        raise RejectedChainError(
            f"{name_of(certificate)} is not valid before {certificate.not_valid_before_utc:%FT%TZ}",
            hint="compare the clocks of this host and of the signer",
        )
    if moment > certificate.not_valid_after_utc:
        raise RejectedChainError(
            f"{name_of(certificate)} expired at {certificate.not_valid_after_utc:%FT%TZ}",
            hint="have it signed again",
        )


def _check_strength(certificate: x509.Certificate) -> None:
    try:
        key = certificate.public_key()
        algorithm = certificate.signature_hash_algorithm
    except MALFORMED:
        raise RejectedChainError(f"{name_of(certificate)} uses an unknown algorithm") from None
    match key:
        case rsa.RSAPublicKey():
            strong = key.key_size >= MIN_RSA_BITS
        case ec.EllipticCurvePublicKey():
            strong = isinstance(key.curve, _STRONG_CURVES)
        case ed25519.Ed25519PublicKey():
            strong = True
        case _:
            strong = False
    if not strong:
        raise RejectedChainError(
            f"{name_of(certificate)} has a weak or unknown kind of key",
            hint=f"use RSA of {MIN_RSA_BITS} bits or more, P-256, P-384, P-521 or Ed25519",
        )
    if algorithm is not None and not isinstance(algorithm, _STRONG_HASHES):
        raise RejectedChainError(f"{name_of(certificate)} is signed with {algorithm.name}")


def _check_extensions(certificate: x509.Certificate) -> None:
    unknown = [
        extension.oid.dotted_string
        for extension in _extensions(certificate)
        if extension.critical and extension.oid not in _UNDERSTOOD
    ]
    if unknown:
        raise RejectedChainError(
            f"{name_of(certificate)} has critical extensions not understood: {', '.join(unknown)}"
        )


def _check_issuer(issuer: x509.Certificate, *, below: int) -> None:
    """`below`: intermediates between this issuer and the target, self-issued ones not counted."""
    extensions = _extensions(issuer)
    try:
        constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        constraints = x509.BasicConstraints(ca=False, path_length=None)
    if not constraints.ca:
        raise RejectedChainError(
            f"{name_of(issuer)} is not a CA",
            hint="sign it with basicConstraints CA:TRUE",
        )
    if constraints.path_length is not None and below > constraints.path_length:
        raise RejectedChainError(
            f"{name_of(issuer)} allows {constraints.path_length} intermediate CA(s), not {below}"
        )
    try:
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return
    if not usage.key_cert_sign:
        raise RejectedChainError(
            f"{name_of(issuer)} may not sign certificates",
            hint="sign it with keyUsage keyCertSign",
        )


def _extensions(certificate: x509.Certificate) -> x509.Extensions:
    try:
        return certificate.extensions
    except MALFORMED:
        raise RejectedChainError(f"{name_of(certificate)} has malformed extensions") from None


def to_der(certificate: x509.Certificate) -> bytes:
    """Return the DER of a certificate."""
    return certificate.public_bytes(serialization.Encoding.DER)
