"""Keys and certificates of a token, and what a token must be able to do with them."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from hsm_plugin.errors import BadRequestError

KEK_LABEL = "k8s-kms-plugin-kek"
"""CKA_LABEL of a KEK, as the reference plugin writes it."""

SIGNING_KEY_LABEL = "istio-hsm-signing-key"
"""CKA_LABEL of a resident signing key."""

ROOT_LABEL = "istio-hsm-root"
"""CKA_LABEL of an imported root certificate: the trust anchors, and nothing else, bear it."""

MAX_ID_BYTES = 128
_VISIBLE_ASCII = range(0x21, 0x7F)


class KeyAlgorithm(Enum):
    """Algorithm and size of a resident signing key."""

    RSA_2048 = "rsa-2048"
    RSA_3072 = "rsa-3072"
    RSA_4096 = "rsa-4096"
    ECDSA_P256 = "ecdsa-p256"
    ECDSA_P384 = "ecdsa-p384"

    @property
    def is_rsa(self) -> bool:
        """True for RSA, false for ECDSA."""
        return self in _RSA_BITS

    @property
    def rsa_bits(self) -> int:
        """Bits of the modulus; KeyError for ECDSA."""
        return _RSA_BITS[self]


_RSA_BITS = {
    KeyAlgorithm.RSA_2048: 2048,
    KeyAlgorithm.RSA_3072: 3072,
    KeyAlgorithm.RSA_4096: 4096,
}


class SignatureAlgorithm(Enum):
    """Signature scheme and hash."""

    RSA_PKCS1_SHA256 = "rsa-pkcs1-sha256"
    RSA_PKCS1_SHA384 = "rsa-pkcs1-sha384"
    RSA_PKCS1_SHA512 = "rsa-pkcs1-sha512"
    ECDSA_SHA256 = "ecdsa-sha256"
    ECDSA_SHA384 = "ecdsa-sha384"

    @property
    def is_rsa(self) -> bool:
        """True for RSASSA-PKCS1-v1_5, false for ECDSA."""
        return self in _DIGEST_INFO

    @property
    def digest_bytes(self) -> int:
        """Length of the digest that is signed."""
        return _DIGEST_BYTES[self]

    @property
    def digest_info(self) -> bytes:
        """DER prefix that goes before the digest (RFC 8017, section 9.2); KeyError for ECDSA."""
        return _DIGEST_INFO[self]


_DIGEST_BYTES = {
    SignatureAlgorithm.RSA_PKCS1_SHA256: 32,
    SignatureAlgorithm.RSA_PKCS1_SHA384: 48,
    SignatureAlgorithm.RSA_PKCS1_SHA512: 64,
    SignatureAlgorithm.ECDSA_SHA256: 32,
    SignatureAlgorithm.ECDSA_SHA384: 48,
}

_DIGEST_INFO = {
    SignatureAlgorithm.RSA_PKCS1_SHA256: bytes.fromhex("3031300d060960864801650304020105000420"),
    SignatureAlgorithm.RSA_PKCS1_SHA384: bytes.fromhex("3041300d060960864801650304020205000430"),
    SignatureAlgorithm.RSA_PKCS1_SHA512: bytes.fromhex("3051300d060960864801650304020305000440"),
}


@dataclass(frozen=True, slots=True)
class SigningKey:
    """The public half of a key pair that lives in the token."""

    key_id: bytes
    algorithm: KeyAlgorithm
    public_key: bytes
    """DER SubjectPublicKeyInfo (RFC 5280, section 4.1)."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """The parts of an AES-GCM encryption (NIST SP 800-38D)."""

    iv: bytes
    ciphertext: bytes
    tag: bytes


@dataclass(frozen=True, slots=True)
class TrustedRoot:
    """A root certificate kept in the token."""

    ca_id: bytes
    subject: bytes = field(repr=False)
    """DER Name (RFC 5280, section 4.1.2.6)."""
    certificate: bytes = field(repr=False)
    """DER Certificate (RFC 5280, section 4.1)."""


@dataclass(frozen=True, slots=True)
class TokenIdentity:
    """Which token answers."""

    label: str
    serial: str
    model: str
    slot_id: int
    session_limit: int
    """Calls that the token can serve at once."""


class KeyStore(Protocol):
    """What is needed of a token. Every method blocks and is safe to call from threads.

    All raise HsmUnavailableError when the token cannot be reached, and ConflictError when more
    than one object answers to an id.
    """

    def generate_kek(self, kek_id: bytes) -> bool:
        """Return true when an AES-256 KEK was made, false when this id was there already."""

    def wrap(self, kek_id: bytes, plaintext: bytes, aad: bytes) -> Sealed:
        """Return the plaintext encrypted by the KEK inside the token."""

    def unwrap(self, kek_id: bytes, sealed: Sealed, aad: bytes) -> bytes:
        """Return the plaintext; RejectedBlobError when the tag does not match."""

    def generate_signing_key(
        self, key_id: bytes, algorithm: KeyAlgorithm
    ) -> tuple[SigningKey, bool]:
        """Return the key pair of this id and whether it was made by this call.

        ConflictError when the id is there with another algorithm.
        """

    def signing_key(self, key_id: bytes) -> SigningKey:
        """Return the public half, after a check that the private half cannot be extracted."""

    def sign(self, key_id: bytes, algorithm: SignatureAlgorithm, digest: bytes) -> bytes:
        """Return the signature: PKCS#1 octets for RSA, DER ECDSA-Sig-Value for ECDSA."""

    def add_root(self, root: TrustedRoot) -> bool:
        """Return true when the root was stored, false when it was there already."""

    def roots(self) -> list[TrustedRoot]:
        """Return every imported root."""


class AsyncKeyStore(Protocol):
    """A KeyStore for callers on an event loop, bound to one call's deadline.

    Raises ExpiredError and OverloadedError besides what a KeyStore raises.
    """

    async def generate_kek(self, kek_id: bytes) -> bool:
        """See KeyStore."""

    async def wrap(self, kek_id: bytes, plaintext: bytes, aad: bytes) -> Sealed:
        """See KeyStore."""

    async def unwrap(self, kek_id: bytes, sealed: Sealed, aad: bytes) -> bytes:
        """See KeyStore."""

    async def generate_signing_key(
        self, key_id: bytes, algorithm: KeyAlgorithm
    ) -> tuple[SigningKey, bool]:
        """See KeyStore."""

    async def signing_key(self, key_id: bytes) -> SigningKey:
        """See KeyStore."""

    async def sign(self, key_id: bytes, algorithm: SignatureAlgorithm, digest: bytes) -> bytes:
        """See KeyStore."""

    async def add_root(self, root: TrustedRoot) -> bool:
        """See KeyStore."""

    async def roots(self) -> list[TrustedRoot]:
        """See KeyStore."""


def checked_id(value: bytes, name: str) -> bytes:
    """Return the id, when it is 1 to 128 bytes of visible ASCII; else BadRequestError."""
    if not value:
        raise BadRequestError(f"{name} is empty", hint=f"give the {name} of an existing object")
    if len(value) > MAX_ID_BYTES:
        raise BadRequestError(
            f"{name} has {len(value)} bytes", hint=f"at most {MAX_ID_BYTES} are allowed"
        )
    if not all(byte in _VISIBLE_ASCII for byte in value):
        raise BadRequestError(f"{name} is not visible ASCII", hint="use a UUID or a short name")
    return value
