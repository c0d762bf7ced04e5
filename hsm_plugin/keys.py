"""Keys and certificates of a token, and what a token must be able to do with them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from hsm_plugin.errors import BadRequestError

KEK_LABEL = "k8s-kms-plugin-kek"
"""CKA_LABEL of a KEK, as the reference plugin writes it."""

CBC_KEK_LABEL = "k8s-dek"
"""CKA_LABEL of a KEK for AES-CBC, the reference's default of --p11-key-label."""

CBC_MAC_LABEL = "k8s-hmac"
"""CKA_LABEL of the HMAC key beside it, the reference's default of --p11-hmac-label."""

SIGNING_KEY_LABEL = "istio-hsm-signing-key"
"""CKA_LABEL of a resident signing key."""

ROOT_LABEL = "istio-hsm-root"
"""CKA_LABEL of an imported root certificate: the trust anchors, and nothing else, bear it."""

AUDIT_KEY_ID = b"audit-checkpoint"
"""The signing key of the audit log's checkpoints: no caller may use, make or destroy it."""

MAX_ID_BYTES = 128
_VISIBLE_ASCII = range(0x21, 0x7F)


class KekCipher(Enum):
    """How a KEK encrypts; each has KEKs of its own."""

    GCM = "aes-gcm"
    CBC = "aes-cbc"
    """AES-CBC, then HMAC-SHA256 by a second key, for tokens without GCM."""


@dataclass(frozen=True, slots=True)
class CbcLabels:
    """CKA_LABEL of the two keys that make a KEK for AES-CBC."""

    kek: str = CBC_KEK_LABEL
    mac: str = CBC_MAC_LABEL


class KeyKind(Enum):
    """What a signing key is made of."""

    RSA = "RSA"
    EC = "EC"
    EDWARDS = "Edwards"


class KeyAlgorithm(Enum):
    """Algorithm and size of a resident signing key."""

    RSA_2048 = "rsa-2048"
    RSA_3072 = "rsa-3072"
    RSA_4096 = "rsa-4096"
    ECDSA_P256 = "ecdsa-p256"
    ECDSA_P384 = "ecdsa-p384"
    ECDSA_P521 = "ecdsa-p521"
    ED25519 = "ed25519"

    @property
    def kind(self) -> KeyKind:
        """What a key of this algorithm is made of."""
        if self in _RSA_BITS:
            return KeyKind.RSA
        return KeyKind.EDWARDS if self is KeyAlgorithm.ED25519 else KeyKind.EC

    @property
    def rsa_bits(self) -> int:
        """Bits of the modulus; KeyError for other kinds than RSA."""
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
    RSA_PSS_SHA256 = "rsa-pss-sha256"
    RSA_PSS_SHA384 = "rsa-pss-sha384"
    RSA_PSS_SHA512 = "rsa-pss-sha512"
    ECDSA_SHA256 = "ecdsa-sha256"
    ECDSA_SHA384 = "ecdsa-sha384"
    ECDSA_SHA512 = "ecdsa-sha512"
    EDDSA_ED25519 = "eddsa-ed25519"

    @property
    def kind(self) -> KeyKind:
        """The kind of key that makes such signatures."""
        if self is SignatureAlgorithm.EDDSA_ED25519:
            return KeyKind.EDWARDS
        return KeyKind.EC if self.value.startswith("ecdsa") else KeyKind.RSA

    @property
    def digest_bytes(self) -> int | None:
        """Length of the digest that is signed; None when the message itself is."""
        return _DIGEST_BYTES.get(self.value.rpartition("-")[2])

    @property
    def is_pss(self) -> bool:
        """True for RSASSA-PSS (RFC 8017, section 8.1)."""
        return self.value.startswith("rsa-pss")

    @property
    def digest_info(self) -> bytes:
        """DER prefix of the digest in RSASSA-PKCS1-v1_5 (RFC 8017, section 9.2); else empty."""
        return _DIGEST_INFO.get(self, b"")


_DIGEST_BYTES = {"sha256": 32, "sha384": 48, "sha512": 64}

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
class ListedKey:
    """A signing key that was found in the token, whether it can be used or not."""

    key_id: bytes
    key: SigningKey | None
    """None when there is a fault."""
    fault: str = ""
    """Why it is not used; empty for one that is."""


@dataclass(frozen=True, slots=True)
class InspectedKey:
    """A KEK, or a signing key's private half, as the token describes it."""

    key_id: bytes
    label: str
    sensitive: bool
    extractable: bool
    never_extractable: bool
    local: bool


@dataclass(frozen=True, slots=True)
class Sealed:
    """The parts of an authenticated encryption (NIST SP 800-38D for AES-GCM)."""

    iv: bytes
    ciphertext: bytes
    tag: bytes
    cipher: KekCipher = KekCipher.GCM


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
    rank: int = 0
    """Its place in the list of tokens; 0 is the preferred one."""
    passed_over: str = ""
    """Why tokens that were tried before it are not in use; empty without any."""


class KeyStore(Protocol):
    """What is needed of a token. Every method blocks and is safe to call from threads.

    All raise HsmUnavailableError when the token cannot be reached, and ConflictError when more
    than one object answers to an id.
    """

    def generate_kek(self, kek_id: bytes, cipher: KekCipher = KekCipher.GCM) -> bool:
        """Return true when an AES-256 KEK was made, false when this id was there already."""

    def wrap(
        self, kek_id: bytes, plaintext: bytes, aad: bytes, cipher: KekCipher = KekCipher.GCM
    ) -> Sealed:
        """Return the plaintext encrypted by the KEK inside the token.

        For CBC it must be whole blocks of 16 bytes, at least one.
        """

    def unwrap(self, kek_id: bytes, sealed: Sealed, aad: bytes) -> bytes:
        """Return the plaintext; RejectedBlobError when the tag does not match."""

    def destroy_kek(self, kek_id: bytes, cipher: KekCipher = KekCipher.GCM) -> None:
        """Destroy the KEK for good, with all that is wrapped by it.

        What an interrupted call left behind is destroyed by the next one; KeyNotFoundError when
        nothing is.
        """

    def generate_signing_key(
        self, key_id: bytes, algorithm: KeyAlgorithm
    ) -> tuple[SigningKey, bool]:
        """Return the key pair of this id and whether it was made by this call.

        ConflictError when the id is there with another algorithm.
        """

    def signing_key(self, key_id: bytes) -> SigningKey:
        """Return the public half, after a check that the private half cannot be extracted."""

    def sign(self, key_id: bytes, algorithm: SignatureAlgorithm, digest: bytes) -> bytes:
        """Return the signature: PKCS#1 octets for RSA, DER for ECDSA, 64 bytes for Ed25519.

        `digest`: for Ed25519, the message itself. UnsupportedError when the token has no
        mechanism for it.
        """

    def sign_batch(
        self, key_id: bytes, algorithm: SignatureAlgorithm, digests: Sequence[bytes]
    ) -> list[bytes]:
        """Return a signature for each digest, as `sign` does; all, or the first error."""

    def signing_keys(self) -> list[ListedKey]:
        """Return every signing key, ordered by its id."""

    def inspect(self) -> list[InspectedKey]:
        """Return the KEKs and signing keys as the token describes them."""

    def destroy_signing_key(self, key_id: bytes, public_key_sha256: bytes) -> None:
        """Destroy both halves; ConflictError when the public key is not the one confirmed.

        What an interrupted call left behind is destroyed by the next one.
        """

    def add_root(self, root: TrustedRoot) -> bool:
        """Return true when the root was stored, false when it was there already."""

    def roots(self) -> list[TrustedRoot]:
        """Return every imported root."""


class AsyncKeyStore(Protocol):
    """A KeyStore for callers on an event loop, bound to one call's deadline.

    Raises ExpiredError and OverloadedError besides what a KeyStore raises.
    """

    async def generate_kek(self, kek_id: bytes, cipher: KekCipher = KekCipher.GCM) -> bool:
        """See KeyStore."""

    async def wrap(
        self, kek_id: bytes, plaintext: bytes, aad: bytes, cipher: KekCipher = KekCipher.GCM
    ) -> Sealed:
        """See KeyStore."""

    async def unwrap(self, kek_id: bytes, sealed: Sealed, aad: bytes) -> bytes:
        """See KeyStore."""

    async def destroy_kek(self, kek_id: bytes, cipher: KekCipher = KekCipher.GCM) -> None:
        """See KeyStore."""

    async def generate_signing_key(
        self, key_id: bytes, algorithm: KeyAlgorithm
    ) -> tuple[SigningKey, bool]:
        """See KeyStore."""

    async def signing_key(self, key_id: bytes) -> SigningKey:
        """See KeyStore."""

    async def sign(self, key_id: bytes, algorithm: SignatureAlgorithm, digest: bytes) -> bytes:
        """See KeyStore."""

    async def sign_batch(
        self, key_id: bytes, algorithm: SignatureAlgorithm, digests: Sequence[bytes]
    ) -> list[bytes]:
        """See KeyStore."""

    async def signing_keys(self) -> list[ListedKey]:
        """See KeyStore."""

    async def inspect(self) -> list[InspectedKey]:
        """See KeyStore."""

    async def destroy_signing_key(self, key_id: bytes, public_key_sha256: bytes) -> None:
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
