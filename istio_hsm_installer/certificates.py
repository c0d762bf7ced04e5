"""Certificates as others wrote them: read, or taken for none; never a traceback. Pure."""

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

MALFORMED = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""All that `cryptography` raises about bytes that are no certificate, request or key."""


def load(pem: bytes) -> list[x509.Certificate]:
    """Return the certificates of a PEM; one of MALFORMED unless each is sound in all its parts."""
    return [_read_whole(entry) for entry in x509.load_pem_x509_certificates(pem)]


def load_der(der: bytes) -> x509.Certificate:
    """Return the certificate; one of MALFORMED unless it is sound in all its parts."""
    return _read_whole(x509.load_der_x509_certificate(der))


def read(pem: bytes) -> list[x509.Certificate]:
    """Return the certificates of a PEM; none when one of them is not sound."""
    try:
        return load(pem)
    except MALFORMED:
        return []


def fingerprints(pem: bytes) -> set[bytes]:
    """Return the SHA-256 of each certificate of a PEM; none when it is no PEM."""
    try:
        found = x509.load_pem_x509_certificates(pem)
    except MALFORMED:
        return set()
    return {entry.fingerprint(hashes.SHA256()) for entry in found}


def is_signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Return whether the issuer's key signed it, under the issuer's name."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, *MALFORMED):
        return False
    return True


def key_sha256(key: CertificatePublicKeyTypes) -> str:
    """Return the SHA-256 of the DER SubjectPublicKeyInfo, as the plugin lists it."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(
        key.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return digest.finalize().hex()


def _read_whole(certificate: x509.Certificate) -> x509.Certificate:
    """Return it after a look at what is read lazily, and may be malformed."""
    _ = certificate.subject, certificate.issuer, certificate.extensions, certificate.public_key()
    return certificate
