"""What a KEK encrypts: a blob that says its KEK and cipher, and is bound to its purpose."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from hsm_plugin import cbc_envelope, envelope
from hsm_plugin.envelope import CompactJwe
from hsm_plugin.errors import RejectedBlobError
from hsm_plugin.keys import AsyncKeyStore, KekCipher, Sealed


class Purpose(Enum):
    """What a blob is for: its name, its context (AES-GCM), and its content type (AES-CBC)."""

    DEK = ("a DEK", b"", "jwk+json")
    KUBERNETES = ("Kubernetes", b"kubernetes-kms", "JWT")

    @property
    def title(self) -> str:
        """In words."""
        return self.value[0]

    @property
    def context(self) -> bytes:
        """The additional data in the header of an AES-GCM blob."""
        return self.value[1]

    @property
    def content_type(self) -> str:
        """The cty in the header of an AES-CBC blob."""
        return self.value[2]


@dataclass(frozen=True, slots=True)
class WrappedBlob:
    """A parsed blob of a KEK."""

    kek_id: bytes
    kid: str
    """The id as the header writes it."""
    protected: bytes
    sealed: Sealed
    plaintext_bytes: int | None
    """Length of the plaintext without what fills it up; None: all of it."""


def parse(blob: bytes, purpose: Purpose, name: str) -> WrappedBlob:
    """Return the parts; RejectedBlobError, naming `name`, for anything else."""
    jwe = envelope.split(blob, name)
    if jwe.header.get("enc") == cbc_envelope.ALGORITHM:
        return _parse_cbc(jwe, purpose, name)
    gcm = envelope.read(jwe, name)
    if gcm.context != purpose.context:
        raise _other_purpose(purpose, name)
    return WrappedBlob(gcm.kid.encode(), gcm.kid, gcm.protected, gcm.sealed, None)


def cipher_of(blob: bytes) -> KekCipher | None:
    """Return the cipher that the header names, nothing else looked at; None when it names none."""
    try:
        enc = envelope.header_of(blob, "the blob").get("enc")
    except RejectedBlobError:
        return None
    if enc == cbc_envelope.ALGORITHM:
        return KekCipher.CBC
    return KekCipher.GCM if enc == envelope.ALGORITHM else None


def _parse_cbc(jwe: CompactJwe, purpose: Purpose, name: str) -> WrappedBlob:
    if jwe.header.get("alg") != cbc_envelope.ALGORITHM:
        raise RejectedBlobError(f"{name} is not encrypted with alg and enc A256CBC")
    if jwe.header.get("cty") != purpose.content_type:
        raise _other_purpose(purpose, name)
    if len(jwe.iv) != cbc_envelope.IV_BYTES or len(jwe.tag) != cbc_envelope.TAG_BYTES:
        raise RejectedBlobError(f"{name} has an IV or a tag of the wrong length")
    return WrappedBlob(
        kek_id=cbc_envelope.kek_id_of(jwe, name),
        kid=jwe.kid,
        protected=jwe.protected,
        sealed=Sealed(jwe.iv, jwe.ciphertext, jwe.tag, KekCipher.CBC),
        plaintext_bytes=cbc_envelope.plaintext_bytes_of(jwe, name),
    )


async def wrap(
    store: AsyncKeyStore, cipher: KekCipher, kek_id: bytes, plaintext: bytes, purpose: Purpose
) -> bytes:
    """Return the plaintext as a blob of this KEK. The id is visible ASCII."""
    protected, plaintext = _prepared(cipher, kek_id, plaintext, purpose)
    sealed = await store.wrap(kek_id, plaintext, protected, cipher)
    return envelope.serialize(protected, sealed)


def new_deks(
    wrap_all: Callable[[Sequence[bytes], bytes], Sequence[Sealed]],
    cipher: KekCipher,
    kek_id: bytes,
    count: int,
) -> list[bytes]:
    """Return new DEKs as blobs of this KEK; they are in the clear here alone.

    `wrap_all`: plaintexts and additional data -> as many of them wrapped as it likes.
    """
    jwks = [envelope.new_jwk() for _ in range(count)]
    protected, _ = _prepared(cipher, kek_id, jwks[0], Purpose.DEK)
    plaintexts = [_prepared(cipher, kek_id, jwk, Purpose.DEK)[1] for jwk in jwks]
    return [envelope.serialize(protected, sealed) for sealed in wrap_all(plaintexts, protected)]


def _prepared(
    cipher: KekCipher, kek_id: bytes, plaintext: bytes, purpose: Purpose
) -> tuple[bytes, bytes]:
    """Return the header, and the plaintext as the cipher takes it."""
    if cipher is KekCipher.CBC:
        protected = cbc_envelope.protected_header(kek_id, purpose.content_type, len(plaintext))
        return protected, cbc_envelope.filled_up(plaintext)
    return envelope.protected_header(kek_id.decode(), purpose.context), plaintext


async def unwrap(store: AsyncKeyStore, blob: WrappedBlob) -> bytes:
    """Return the plaintext; RejectedBlobError when the blob was changed."""
    plaintext = await store.unwrap(blob.kek_id, blob.sealed, blob.protected)
    return plaintext[: blob.plaintext_bytes]


def _other_purpose(purpose: Purpose, name: str) -> RejectedBlobError:
    return RejectedBlobError(
        f"{name} was not made for {purpose.title}",
        hint="pass what this plugin answered for the same purpose",
    )
