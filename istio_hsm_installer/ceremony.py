"""The signing ceremony: from istiod's CSR to a chain that the mesh may trust. Pure.

The offline root signs an intermediate CA that can issue workload certificates and nothing
below (path length 0). Certificates come from this policy, never from what the CSR asks for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from istio_hsm_installer import certificates
from istio_hsm_installer.certificates import MALFORMED, is_signed_by, key_sha256
from istio_hsm_installer.errors import InputError, RefusedError

MIN_RSA_BITS = 2048
CLOCK_SKEW = timedelta(minutes=5)
_CURVES = (ec.SECP256R1, ec.SECP384R1)

RootKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
CaKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey


@dataclass(frozen=True, slots=True)
class Request:
    """A CSR that was checked: its own key signed it, and the key is strong enough."""

    csr: x509.CertificateSigningRequest
    key: CaKey

    @property
    def subject(self) -> str:
        """RFC 4514 text of the subject."""
        return self.csr.subject.rfc4514_string()

    @property
    def key_kind(self) -> str:
        """Such as `RSA-2048` or `ECDSA secp256r1`."""
        return _kind(self.key)

    @property
    def key_sha256(self) -> str:
        """SHA-256 of the DER SubjectPublicKeyInfo: what two people compare by voice."""
        return key_sha256(self.key)


def load_request(pem: bytes) -> Request:
    """Return the CSR of a PEM; RefusedError when it may not be signed."""
    try:
        csr = x509.load_pem_x509_csr(pem)
        key = csr.public_key()
        is_genuine = csr.is_signature_valid
        _ = csr.subject  # read lazily: it may be malformed
    except MALFORMED:
        raise InputError(
            "this is not a PEM certificate request",
            hint="decrypt it first: hsm-plugin decrypt-csr -f encrypted_csr.json -o csr.pem",
        ) from None
    if not csr.subject.rdns:  # RFC 5280, section 4.1.2.6: a CA has a name
        raise RefusedError(
            "the request names no subject, which a CA certificate must have",
            hint="have it made anew: istiod and the bridge name their trust domain",
        )
    if not is_genuine:
        raise RefusedError(
            "the request was not signed by the key that it names",
            hint="fetch and decrypt it again; if it stays so, treat it as an attack",
        )
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= MIN_RSA_BITS:
        return Request(csr, key)
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, _CURVES):
        return Request(csr, key)
    raise RefusedError(
        "the request's key is weak or of an unknown kind",
        hint="a CA key is RSA of 2048 bits or more, P-256 or P-384",
    )


def sign(
    request: Request,
    root: x509.Certificate,
    root_key: RootKey,
    *,
    lifetime: timedelta,
    now: datetime,
) -> x509.Certificate:
    """Return the intermediate CA certificate, checked against the root after signing."""
    check_pair(root, root_key)
    _check_root(root, now)
    not_after = min(now + lifetime, root.not_valid_after_utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(request.csr.subject)
        .issuer_name(root.subject)
        .public_key(request.key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(max(now - CLOCK_SKEW, root.not_valid_before_utc))
        .not_valid_after(not_after)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_ca_key_usage(), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(request.key), critical=False)
        .add_extension(authority_key_identifier(root), critical=False)
        .sign(root_key, hash_for(root_key))
    )
    check_chain([certificate, root], request, now=now)
    return certificate


def check_pair(root: x509.Certificate, root_key: RootKey) -> None:
    """Return when the key is the certificate's."""
    if key_sha256(root_key.public_key()) != key_sha256(_public_key(root)):
        raise InputError(
            "the root key does not belong to the root certificate",
            hint="give the pair that was made together",
        )


def make_root(
    subject: str, key: RootKey, *, lifetime: timedelta, now: datetime
) -> x509.Certificate:
    """Return a self-signed root CA certificate for a key."""
    try:
        name = x509.Name.from_rfc4514_string(subject)
    except ValueError:
        name = x509.Name([])
    if not name.rdns:
        raise InputError(
            f"{subject!r} is no RFC 4514 name", hint="write such as CN=Mesh Root,O=Example"
        )
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    root = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + lifetime)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_ca_key_usage(), critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, hash_for(key))
    )
    root.verify_directly_issued_by(root)
    return root


def check_chain(chain: Sequence[x509.Certificate], request: Request, *, now: datetime) -> None:
    """Return when the chain, CA certificate first and root last, answers this request.

    RefusedError names the first reason. The HSM's own check against the imported root comes
    later and is the one that counts; this one spares the operator the wait.
    """
    if len(chain) < 2:  # noqa: PLR2004 - the CA's certificate and its root
        raise RefusedError(
            "the chain holds fewer than two certificates",
            hint="put the CA's certificate first, intermediates next, the root last",
        )
    if key_sha256(_public_key(chain[0])) != request.key_sha256:
        raise RefusedError(
            "the first certificate is for another key than the one in the HSM",
            hint="sign the CSR that was fetched last, and put its certificate first",
        )
    for certificate, issuer in zip(chain, [*chain[1:], chain[-1]], strict=True):
        _check_is_ca(certificate)
        if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
            raise RefusedError(
                f'"{certificate.subject.rfc4514_string()}" is expired or not yet valid',
                hint="compare the clocks, or have it signed again",
            )
        if not is_signed_by(certificate, issuer):
            raise RefusedError(
                f'"{certificate.subject.rfc4514_string()}" was not signed by '
                f'"{issuer.subject.rfc4514_string()}"',
                hint="order the chain from the CA's certificate to the self-signed root",
            )


def load_chain(pem: bytes) -> list[x509.Certificate]:
    """Return the certificates of a PEM; InputError when there are none."""
    try:
        return certificates.load(pem)
    except MALFORMED:
        raise InputError("there is no sound PEM certificate in the chain") from None


def to_pem(chain: Sequence[x509.Certificate]) -> bytes:
    """Return the certificates as PEM, in their order."""
    return b"".join(entry.public_bytes(serialization.Encoding.PEM) for entry in chain)


def load_root_key(pem: bytes, passphrase: bytes | None) -> RootKey:
    """Return the private key; InputError, which never quotes the file, otherwise."""
    try:
        key = serialization.load_pem_private_key(pem, passphrase)
    except MALFORMED:
        raise InputError(
            "the root key cannot be read: not a PEM private key, or the passphrase is wrong",
            hint="name the passphrase's file with --passphrase-file",
        ) from None
    if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise InputError("the root key is neither RSA nor ECDSA")
    return key


def _check_root(root: x509.Certificate, now: datetime) -> None:
    _check_is_ca(root)
    if not root.not_valid_before_utc <= now < root.not_valid_after_utc:
        raise RefusedError("the root certificate is expired or not yet valid")


def _check_is_ca(certificate: x509.Certificate) -> None:
    try:
        is_ca = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        is_ca = False
    if not is_ca:
        raise RefusedError(
            f'"{certificate.subject.rfc4514_string()}" is not a CA certificate',
            hint="sign it with basicConstraints CA:TRUE",
        )


def _public_key(certificate: x509.Certificate) -> CaKey:
    key = certificate.public_key()
    if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        raise RefusedError(
            f'"{certificate.subject.rfc4514_string()}" has a key that is neither RSA nor ECDSA'
        )
    return key


def authority_key_identifier(root: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """Return how what the root signs names the root's key."""
    try:
        subject_key = root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(_public_key(root))
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(subject_key)


def _ca_key_usage() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )


def hash_for(key: RootKey) -> hashes.SHA256 | hashes.SHA384:
    """Return the hash that a root of this strength signs with."""
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP384R1):
        return hashes.SHA384()
    return hashes.SHA256()


def _kind(key: CaKey) -> str:
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA-{key.key_size}"
    return f"ECDSA {key.curve.name}"
