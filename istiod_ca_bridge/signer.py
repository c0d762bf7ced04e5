"""A private key that is used and never seen, and the algorithms it may have."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey


class KeyAlgorithm(Enum):
    """Algorithm and size of a CA key."""

    RSA_2048 = "rsa-2048"
    RSA_3072 = "rsa-3072"
    RSA_4096 = "rsa-4096"
    ECDSA_P256 = "ecdsa-p256"
    ECDSA_P384 = "ecdsa-p384"


@dataclass(frozen=True, slots=True)
class SignatureScheme:
    """How certificates are signed by a key of one kind."""

    hash: hashes.SHA256 | hashes.SHA384
    algorithm_identifier: bytes
    """DER AlgorithmIdentifier (RFC 4055, section 5; RFC 5758, section 3.2)."""


_RSA_SHA256 = SignatureScheme(hashes.SHA256(), bytes.fromhex("300d06092a864886f70d01010b0500"))
_ECDSA_SHA256 = SignatureScheme(hashes.SHA256(), bytes.fromhex("300a06082a8648ce3d040302"))
_ECDSA_SHA384 = SignatureScheme(hashes.SHA384(), bytes.fromhex("300a06082a8648ce3d040303"))

_RSA_SIZES = {
    2048: KeyAlgorithm.RSA_2048,
    3072: KeyAlgorithm.RSA_3072,
    4096: KeyAlgorithm.RSA_4096,
}
RSA_BITS = {algorithm: bits for bits, algorithm in _RSA_SIZES.items()}


class Signer(Protocol):
    """A private key somewhere: in the HSM, or in memory."""

    @property
    def public_key(self) -> PublicKey:
        """The public half."""
        ...

    async def sign(self, message: bytes) -> bytes:
        """Return the signature in X.509 form by `scheme_of(public_key)`.

        KeyServiceUnavailableError when the key cannot be used now.
        """
        ...


def algorithm_of(public_key: object) -> KeyAlgorithm | None:
    """Return the algorithm of a public key; None for one that no CA key may have."""
    if isinstance(public_key, rsa.RSAPublicKey):
        return _RSA_SIZES.get(public_key.key_size)
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        if isinstance(public_key.curve, ec.SECP256R1):
            return KeyAlgorithm.ECDSA_P256
        if isinstance(public_key.curve, ec.SECP384R1):
            return KeyAlgorithm.ECDSA_P384
    return None


def scheme_of(public_key: PublicKey) -> SignatureScheme:
    """Return how a key of this kind signs certificates."""
    if isinstance(public_key, rsa.RSAPublicKey):
        return _RSA_SHA256
    return _ECDSA_SHA384 if isinstance(public_key.curve, ec.SECP384R1) else _ECDSA_SHA256


def key_der(public_key: CertificatePublicKeyTypes) -> bytes:
    """Return the DER SubjectPublicKeyInfo (RFC 5280, section 4.1)."""
    return public_key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def verification(public_key: PublicKey) -> Callable[[bytes, bytes], None]:
    """Return what takes a signature and a message; raises InvalidSignature when it is not."""
    scheme = scheme_of(public_key)
    if isinstance(public_key, rsa.RSAPublicKey):
        verify_rsa, filling = public_key.verify, padding.PKCS1v15()
        return lambda signature, message: verify_rsa(signature, message, filling, scheme.hash)
    verify_ec, algorithm = public_key.verify, ec.ECDSA(scheme.hash)
    return lambda signature, message: verify_ec(signature, message, algorithm)


def is_signature(public_key: PublicKey, signature: bytes, message: bytes) -> bool:
    """Return whether the signature is the key's on the message."""
    try:
        verification(public_key)(signature, message)
    except InvalidSignature:
        return False
    return True
