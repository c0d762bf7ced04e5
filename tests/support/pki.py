"""Throw-away CAs, intermediates and leaves, sound by default, each with the faults asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import NameOID

MOMENT = datetime.now(UTC).replace(microsecond=0)
"""When this run began: what `issue` makes is valid then, unless told otherwise."""

_SHA256_WITH_RSA = bytes.fromhex("06092a864886f70d01010b")
_SHA1_WITH_RSA = bytes.fromhex("06092a864886f70d010105")

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True, slots=True)
class Usage:
    """The bits of keyUsage that these certificates set."""

    sign_certificates: bool = False
    sign_data: bool = False

    def extension(self) -> x509.KeyUsage:
        return x509.KeyUsage(
            digital_signature=self.sign_data,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=self.sign_certificates,
            crl_sign=self.sign_certificates,
            encipher_only=False,
            decipher_only=False,
        )


CA_USAGE = Usage(sign_certificates=True)
LEAF_USAGE = Usage(sign_data=True)


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: PrivateKey = field(repr=False)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)


def issue(
    name: str,
    issuer: Issued | None = None,
    *,
    is_ca: bool | None = False,
    path_length: int | None = None,
    usage: Usage | None = LEAF_USAGE,
    valid_from: datetime = MOMENT - timedelta(hours=1),
    valid_until: datetime = MOMENT + timedelta(days=1),
    key: PrivateKey | None = None,
    extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
) -> Issued:
    """Return a certificate, self-signed without an issuer. `is_ca` None leaves the flag out."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(issuer.certificate.subject if issuer else _name(name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(valid_from)
        .not_valid_after(valid_until)
    )
    if is_ca is not None:
        constraints = x509.BasicConstraints(ca=is_ca, path_length=path_length)
        builder = builder.add_extension(constraints, critical=True)
    if usage is not None:
        builder = builder.add_extension(usage.extension(), critical=True)
    for extension, is_critical in extensions:
        builder = builder.add_extension(extension, critical=is_critical)
    return Issued(builder.sign(issuer.key if issuer else key, hashes.SHA256()), key)


def root(
    name: str = "Mesh Root",
    *,
    key: PrivateKey | None = None,
    valid_from: datetime = MOMENT - timedelta(hours=1),
    valid_until: datetime = MOMENT + timedelta(days=1),
    path_length: int | None = None,
) -> Issued:
    """Return a sound root CA."""
    return issue(
        name,
        is_ca=True,
        usage=CA_USAGE,
        key=key,
        valid_from=valid_from,
        valid_until=valid_until,
        path_length=path_length,
    )


def intermediate(
    issuer: Issued, name: str = "Mesh CA", *, path_length: int | None = None
) -> Issued:
    """Return a sound CA below the issuer."""
    return issue(name, issuer, is_ca=True, usage=CA_USAGE, path_length=path_length)


def leaf(issuer: Issued, name: str = "workload") -> Issued:
    """Return a sound end-entity certificate."""
    return issue(name, issuer)


def crl(
    issuer: Issued,
    *revoked: int,
    valid_from: datetime = MOMENT - timedelta(hours=1),
    valid_until: datetime = MOMENT + timedelta(days=365),
    extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
) -> x509.CertificateRevocationList:
    """Return a revocation list of serials."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(valid_from)
        .next_update(valid_until)
    )
    for serial in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(valid_from)
        builder = builder.add_revoked_certificate(entry.build())
    for extension, is_critical in extensions:
        builder = builder.add_extension(extension, critical=is_critical)
    return builder.sign(issuer.key, hashes.SHA256())


def crl_pem(issuer: Issued, *revoked: int) -> bytes:
    """Return a sound revocation list in PEM."""
    return crl(issuer, *revoked).public_bytes(serialization.Encoding.PEM)


def with_broken_signature(issued: Issued) -> Issued:
    """Return a twin whose signature has one bit changed."""
    changed = bytearray(issued.der)
    changed[-1] ^= 1
    return Issued(x509.load_der_x509_certificate(bytes(changed)), issued.key)


def with_sha1_signature(issued: Issued, signer: rsa.RSAPrivateKey) -> Issued:
    """Return a twin, truly signed by `signer`, its signature's hash SHA-1.

    The twin is laid out by hand, since the builder signs with strong hashes only.
    """
    draft = x509.load_der_x509_certificate(issued.der.replace(_SHA256_WITH_RSA, _SHA1_WITH_RSA))
    signature = signer.sign(
        draft.tbs_certificate_bytes,
        padding.PKCS1v15(),
        hashes.SHA1(),  # noqa: S303 - the fault that is wanted
    )
    der = draft.public_bytes(serialization.Encoding.DER)[: -len(signature)] + signature
    return Issued(x509.load_der_x509_certificate(der), issued.key)


def with_unreadable_name(issued: Issued, name: str) -> bytes:
    """Return the DER with the bytes of a name replaced by some that are no UTF-8."""
    return issued.der.replace(name.encode(), b"\xff" * len(name))


def request(name: str = "Mesh CA", key: PrivateKey | None = None) -> bytes:
    """Return a PEM certificate request (PKCS#10)."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    csr = (
        x509.CertificateSigningRequestBuilder().subject_name(_name(name)).sign(key, hashes.SHA256())
    )
    return csr.public_bytes(serialization.Encoding.PEM)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
