"""A CA certificate chain offered to this CA: read, and checked before it is served with.

The plugin verifies the chain against the root in the HSM; this is what the plugin cannot
know: that the first certificate is of our key, and that the leaves we issue will verify.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from istiod_ca_bridge.der import MALFORMED
from istiod_ca_bridge.errors import RefusedChainError
from istiod_ca_bridge.name_constraints import IssuedNames, check_name_constraints
from istiod_ca_bridge.signer import PublicKey, key_der

MAX_CERTIFICATES = 16
MAX_CHAIN_BYTES = 256 << 10
_MIN_RSA_BITS = 2048
_PEM_MARK = b"-----BEGIN "
_UNDERSTOOD = {
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.KEY_USAGE,
    ExtensionOID.EXTENDED_KEY_USAGE,
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    ExtensionOID.CERTIFICATE_POLICIES,
    ExtensionOID.NAME_CONSTRAINTS,
}
_MESH_USAGES = {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
_NO_NAMES = IssuedNames()


@dataclass(frozen=True, slots=True)
class CaChain:
    """A path from the CA's own certificate to a root, and all roots that come with it."""

    intermediates: tuple[x509.Certificate, ...]
    """The CA's own certificate first, then each one's issuer, no root."""

    roots: tuple[x509.Certificate, ...]
    """The first one ends the path."""

    kin: tuple[x509.Certificate, ...] = ()
    """Of this CA's other key in a rotation, and its issuers: trusted by nobody because of this."""

    @property
    def ca(self) -> x509.Certificate:
        """The certificate of the CA key."""
        return self.intermediates[0]

    @property
    def not_after(self) -> datetime:
        """When the first certificate of the path expires."""
        path = (*self.intermediates, self.roots[0])
        return min(entry.not_valid_after_utc for entry in path)

    @property
    def not_before(self) -> datetime:
        """When the last certificate of the path begins."""
        path = (*self.intermediates, self.roots[0])
        return max(entry.not_valid_before_utc for entry in path)

    def trusting(self, further: Iterable[x509.Certificate]) -> "CaChain":
        """Return the same path with the further roots, each once, and what else is among them."""
        roots, kin = list(self.roots), list(self.kin)
        for entry in further:
            (roots if entry.subject == entry.issuer else kin).append(entry)
        return CaChain(self.intermediates, tuple(dict.fromkeys(roots)), tuple(dict.fromkeys(kin)))


def checked_chain(
    pem: bytes, public_key: PublicKey, now: datetime, names: IssuedNames = _NO_NAMES
) -> CaChain:
    """Return the chain when this CA may serve with it; RefusedChainError says why not.

    `names`: what will be issued under it.
    """
    chain = _split(_read(pem), public_key)
    path = (*chain.intermediates, chain.roots[0])
    for below, certificate in enumerate(path):
        _check_validity(certificate, now)
        _check_strength(certificate)
        _check_ca(certificate, below)
    for certificate, issuer in itertools.pairwise(path):
        _check_signature(certificate, issuer)
    for root in chain.roots:
        _check_signature(root, root)
    check_name_constraints(path, names)
    return chain


def certificates_in(pem: bytes) -> tuple[x509.Certificate, ...]:
    """Return the certificates of a PEM text; RefusedChainError when it is malformed."""
    return tuple(_read(pem))


def pem_of(*certificates: x509.Certificate) -> str:
    """Return the certificates in PEM, one after the other."""
    return "".join(
        entry.public_bytes(serialization.Encoding.PEM).decode("ascii") for entry in certificates
    )


def name_of(certificate: x509.Certificate) -> str:
    """Return how a certificate is called in logs and reasons."""
    return f'"{certificate.subject.rfc4514_string()[:200]}"'


def is_signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Return whether the issuer's key signed it, under the issuer's name."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, *MALFORMED):
        return False
    return True


def _read(pem: bytes) -> list[x509.Certificate]:
    if len(pem) > MAX_CHAIN_BYTES:
        raise RefusedChainError(f"cert-chain.pem has more than {MAX_CHAIN_BYTES} bytes")
    if not 1 <= pem.count(_PEM_MARK) <= MAX_CERTIFICATES:
        raise RefusedChainError(
            f"cert-chain.pem holds {pem.count(_PEM_MARK)} PEM blocks, not 2 to {MAX_CERTIFICATES}",
            hint="write the CA certificate first, then each issuer, the root last",
        )
    try:
        certificates = x509.load_pem_x509_certificates(pem)
        for entry in certificates:
            _ = (entry.extensions, entry.subject, entry.issuer, entry.public_key())
    except MALFORMED:
        raise RefusedChainError("cert-chain.pem holds a malformed certificate") from None
    if len(certificates) != pem.count(_PEM_MARK):
        raise RefusedChainError("cert-chain.pem holds something else than certificates")
    return certificates


def _split(certificates: list[x509.Certificate], public_key: PublicKey) -> CaChain:
    ours = [key_der(entry.public_key()) == key_der(public_key) for entry in certificates]
    if not ours[0]:
        raise RefusedChainError(
            f"the first certificate, {name_of(certificates[0])}, is not of this CA's key",
            hint="put the CA's own certificate first"
            if any(ours)
            else "sign the CSR of istio-ca-cert-csr, no other",
        )
    length = next(
        (at for at, entry in enumerate(certificates) if entry.subject == entry.issuer),
        len(certificates),
    )
    roots = certificates[length:]
    if not roots:
        raise RefusedChainError(
            "the chain does not end at a root", hint="append the root certificate"
        )
    if length == 0:
        raise RefusedChainError(
            "the CA certificate is self-signed", hint="have the CSR signed by the root"
        )
    if any(entry.subject != entry.issuer for entry in roots):
        raise RefusedChainError(
            "an intermediate follows a root",
            hint="write the CA certificate first, then each issuer, the roots last",
        )
    return CaChain(tuple(certificates[:length]), tuple(roots))


def _check_validity(certificate: x509.Certificate, now: datetime) -> None:
    if now < certificate.not_valid_before_utc:
        raise RefusedChainError(
            f"{name_of(certificate)} is not valid before {certificate.not_valid_before_utc:%FT%TZ}",
            hint="compare the clocks of this host and of the signer",
        )
    if now >= certificate.not_valid_after_utc:
        raise RefusedChainError(
            f"{name_of(certificate)} expired at {certificate.not_valid_after_utc:%FT%TZ}",
            hint="have it signed again",
        )


def _check_strength(certificate: x509.Certificate) -> None:
    key = certificate.public_key()
    match key:
        case rsa.RSAPublicKey():
            strong = key.key_size >= _MIN_RSA_BITS
        case ec.EllipticCurvePublicKey():
            strong = isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1 | ec.SECP521R1)
        case _:
            strong = isinstance(key, ed25519.Ed25519PublicKey)
    if not strong:
        raise RefusedChainError(f"{name_of(certificate)} has a weak or unknown kind of key")
    try:
        algorithm = certificate.signature_hash_algorithm
    except UnsupportedAlgorithm:
        raise RefusedChainError(
            f"{name_of(certificate)} is signed with an unknown algorithm"
        ) from None
    if algorithm is not None and not isinstance(
        algorithm, hashes.SHA256 | hashes.SHA384 | hashes.SHA512
    ):
        raise RefusedChainError(f"{name_of(certificate)} is signed with {algorithm.name}")


def _check_ca(certificate: x509.Certificate, below: int) -> None:
    """`below`: how many CA certificates lie between this one and the leaves."""
    constraints: x509.BasicConstraints | None = None
    for extension in certificate.extensions:
        value = extension.value
        if isinstance(value, x509.BasicConstraints):
            constraints = value
        elif isinstance(value, x509.KeyUsage) and not value.key_cert_sign:
            raise RefusedChainError(
                f"{name_of(certificate)} may not sign certificates",
                hint="sign it with keyUsage keyCertSign",
            )
        elif isinstance(value, x509.ExtendedKeyUsage):
            _check_usages(certificate, value)
        elif extension.critical and extension.oid not in _UNDERSTOOD:
            raise RefusedChainError(
                f"{name_of(certificate)} has a critical extension not understood: "
                f"{extension.oid.dotted_string}"
            )
    if constraints is None or not constraints.ca:
        raise RefusedChainError(
            f"{name_of(certificate)} is not a CA", hint="sign it with basicConstraints CA:TRUE"
        )
    if constraints.path_length is not None and below > constraints.path_length:
        raise RefusedChainError(
            f"{name_of(certificate)} allows {constraints.path_length} CA certificate(s) below "
            f"it, and there are {below}",
            hint="raise pathlen in its basicConstraints",
        )


def _check_usages(certificate: x509.Certificate, usages: x509.ExtendedKeyUsage) -> None:
    given = set(usages)
    if ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE not in given and not given >= _MESH_USAGES:
        raise RefusedChainError(
            f"{name_of(certificate)} restricts its extended key usage",
            hint="sign it without, or with both serverAuth and clientAuth",
        )


def _check_signature(certificate: x509.Certificate, issuer: x509.Certificate) -> None:
    if certificate.issuer != issuer.subject:
        raise RefusedChainError(
            f"{name_of(certificate)} is followed by {name_of(issuer)}, which is not its issuer",
            hint="write the CA certificate first, then each issuer, the root last",
        )
    if not is_signed_by(certificate, issuer):
        raise RefusedChainError(
            f"the signature on {name_of(certificate)} was not made by {name_of(issuer)}"
        )
