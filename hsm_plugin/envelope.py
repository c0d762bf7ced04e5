"""The blobs on the wire: compact JWE with alg "dir", enc "A256GCM" (RFC 7516, RFC 7518).

The byte layout is the reference plugin's: header members in its order, no padding, the ASCII
of the encoded header as additional data, 12-byte IVs under a DEK. The DEK travels as a JWK
(RFC 7517) inside a JWE that the KEK encrypts in the token.
"""

import binascii
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hsm_plugin.errors import HsmUnavailableError, RejectedBlobError
from hsm_plugin.keys import Sealed

ALGORITHM = "A256GCM"
MAX_BLOB_BYTES = 1 << 20
MAX_HEADER_BYTES = 64 << 10
TAG_BYTES = 16
DEK_BYTES = 32
DEK_IV_BYTES = 12
KEK_IV_BYTES = 16
_PARTS = 5
_TO_URL = bytes.maketrans(b"+/", b"-_")
_FROM_URL = bytes.maketrans(b"-_+/=", b"+/\0\0\0")
"""To the alphabet that binascii reads; what base64url has not becomes what it refuses."""
_REMEMBERED_BYTES = 1024
_REMEMBERED_HEADERS = 512
"""Headers, which are public, are few and come again and again: one for each DEK and context."""
_KID = re.compile(r"[0-9a-f]{1,128}", re.ASCII)


class CompactJwe(NamedTuple):
    """The parts of a compact JWE, its algorithms not looked at yet."""

    header: Mapping[str, object]
    kid: str
    protected: bytes
    """ASCII of the encoded header."""
    iv: bytes
    ciphertext: bytes
    tag: bytes


class Jwe(NamedTuple):
    """A parsed compact JWE of alg "dir", enc "A256GCM"."""

    kid: str
    protected: bytes
    """ASCII of the encoded header: the additional data of the encryption."""
    sealed: Sealed
    context: bytes
    """The caller's additional data, empty when the header has none."""


@dataclass(slots=True)
class Dek:
    """A data encryption key, AES-256, until it is wiped."""

    kid: str
    key: bytearray = field(repr=False)
    _cipher: AESGCM | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._cipher = AESGCM(self.key)

    @classmethod
    def generate(cls) -> "Dek":
        """Return a new random key with a random kid."""
        return cls(kid=os.urandom(32).hex(), key=bytearray(os.urandom(DEK_BYTES)))

    def wipe(self) -> None:
        """Overwrite the key; OpenSSL overwrites its own copy when the cipher is freed."""
        self.key[:] = bytes(len(self.key))
        self._cipher = None

    def to_jwk(self) -> bytes:
        """Return the JWK, byte for byte as the reference lays it out."""
        return _jwk(self.kid, self.key)

    @classmethod
    def from_jwk(cls, jwk: bytes) -> "Dek":
        """Return the key of a JWK; RejectedBlobError when it is not an AES-256-GCM key."""
        members = _json_object(jwk, "the DEK")
        kid, key = members.get("kid"), members.get("k")
        if members.get("kty") != "oct" or members.get("alg") != "A256GCM":
            raise RejectedBlobError("the DEK is not an A256GCM key")
        if not isinstance(kid, str) or not _KID.fullmatch(kid):
            raise RejectedBlobError("the DEK has no usable kid")
        if not isinstance(key, str) or not key.isascii():
            raise RejectedBlobError("the DEK has no usable key")
        value = decode(key.encode(), "the DEK's key")
        if len(value) != DEK_BYTES:
            raise RejectedBlobError(f"the DEK has {len(value)} bytes instead of {DEK_BYTES}")
        return cls(kid=kid, key=bytearray(value))

    def encrypt(self, plaintext: bytes, context: bytes = b"") -> bytes:
        """Return a JWE of the plaintext; `context` is readable in its header and bound to it."""
        protected = protected_header(self.kid, context)
        iv = os.urandom(DEK_IV_BYTES)
        output = self._usable_cipher().encrypt(iv, plaintext, protected)
        return _compact(protected, iv, output[:-TAG_BYTES], output[-TAG_BYTES:])

    def decrypt(self, blob: bytes, context: bytes = b"") -> bytes:
        """Return the plaintext; RejectedBlobError for another key or context, or a changed blob."""
        jwe = parse(blob, "the ciphertext")
        if jwe.kid != self.kid:
            raise RejectedBlobError(
                "the ciphertext was made with another DEK",
                hint="pass the encrypted DEK that was stored with it",
            )
        if jwe.context != context:
            raise RejectedBlobError(
                "the additional data does not match the ciphertext's",
                hint="pass the aad of the encryption; for a CSR it is the csr-id",
            )
        sealed = jwe.sealed
        try:
            return self._usable_cipher().decrypt(
                sealed.iv, sealed.ciphertext + sealed.tag, jwe.protected
            )
        except InvalidTag:
            raise _tampered("the ciphertext") from None

    def _usable_cipher(self) -> AESGCM:
        if self._cipher is None:
            raise HsmUnavailableError("the DEK was forgotten in the meantime", hint="try again")
        return self._cipher


def new_jwk() -> bytes:
    """Return the JWK of a new random key; all of them have the same length."""
    return _jwk(os.urandom(32).hex(), os.urandom(DEK_BYTES))


def _jwk(kid: str, key: bytes | bytearray) -> bytes:
    return (
        b'{"key_ops":["encrypt","decrypt","sign","verify"],"alg":"A256GCM","kid":"%b",'
        b'"k":"%b","kty":"oct"}' % (kid.encode(), encode(key))
    )


def protected_header(kid: str, context: bytes = b"") -> bytes:
    """Return the encoded header, its members in the reference's order."""
    if len(context) > _REMEMBERED_BYTES:
        return _protected_header(kid, context)
    return _remembered_protected_header(kid, context)


def _protected_header(kid: str, context: bytes) -> bytes:
    members = {"alg": "dir", "kid": kid}
    if context:
        members["_thales_aad"] = encode(context).decode()
    members["enc"] = "A256GCM"
    return encode(json.dumps(members, separators=(",", ":"), ensure_ascii=False).encode())


_remembered_protected_header = lru_cache(_REMEMBERED_HEADERS)(_protected_header)


def serialize(protected: bytes, sealed: Sealed) -> bytes:
    """Return the compact form (RFC 7516, section 7.1) with an empty encrypted key."""
    return _compact(protected, sealed.iv, sealed.ciphertext, sealed.tag)


def _compact(protected: bytes, iv: bytes, ciphertext: bytes, tag: bytes) -> bytes:
    parts = (binascii.b2a_base64(part, newline=False) for part in (iv, ciphertext, tag))
    return b"%b..%b" % (protected, b".".join(parts).translate(_TO_URL, b"="))


def parse(blob: bytes, name: str) -> Jwe:
    """Return the parts of an A256GCM JWE; RejectedBlobError, naming `name`, for anything else."""
    return read(split(blob, name), name)


def split(blob: bytes, name: str) -> CompactJwe:
    """Return the parts of a compact JWE; RejectedBlobError, naming `name`, for anything else."""
    if len(blob) > MAX_BLOB_BYTES:
        raise RejectedBlobError(f"{name} has {len(blob)} bytes, more than {MAX_BLOB_BYTES}")
    parts = blob.split(b".", _PARTS)
    if len(parts) != _PARTS or parts[1]:
        raise RejectedBlobError(
            f"{name} is not a compact JWE with an empty encrypted key",
            hint="a blob from a Kubernetes Secret must be base64-decoded once",
        )
    header = header_of(blob, name)
    if "crit" in header or "zip" in header:
        raise RejectedBlobError(f"{name} asks for a JWE extension that is not supported")
    kid = header.get("kid")
    if not isinstance(kid, str) or not kid.isascii():
        raise RejectedBlobError(f"the header of {name} has no usable kid")
    return CompactJwe(
        header=header,
        kid=kid,
        protected=parts[0],
        iv=decode(parts[2], f"the IV of {name}"),
        ciphertext=decode(parts[3], f"the body of {name}"),
        tag=decode(parts[4], f"the tag of {name}"),
    )


def header_of(blob: bytes, name: str) -> Mapping[str, object]:
    """Return the header alone; RejectedBlobError, naming `name`, when there is none."""
    protected, _, _ = blob[: MAX_HEADER_BYTES + 1].partition(b".")
    if len(protected) > MAX_HEADER_BYTES:
        raise RejectedBlobError(f"the header of {name} is longer than {MAX_HEADER_BYTES} bytes")
    read_header = _remembered_header if len(protected) <= _REMEMBERED_BYTES else _header
    return read_header(protected, name)


def read(jwe: CompactJwe, name: str) -> Jwe:
    """Return an A256GCM JWE of its parts; RejectedBlobError for another one."""
    if jwe.header.get("alg") != "dir" or jwe.header.get("enc") != ALGORITHM:
        raise RejectedBlobError(f"{name} is not encrypted with alg dir, enc A256GCM")
    context = jwe.header.get("_thales_aad", "")
    if not isinstance(context, str) or not context.isascii():
        raise RejectedBlobError(f"the header of {name} has no usable aad")
    if len(jwe.tag) != TAG_BYTES or len(jwe.iv) not in (DEK_IV_BYTES, KEK_IV_BYTES):
        raise RejectedBlobError(f"{name} has an IV or a tag of the wrong length")
    return Jwe(
        kid=jwe.kid,
        protected=jwe.protected,
        sealed=Sealed(iv=jwe.iv, ciphertext=jwe.ciphertext, tag=jwe.tag),
        context=decode(context.encode(), f"the aad of {name}") if context else b"",
    )


def _header(protected: bytes, name: str) -> Mapping[str, object]:
    what = f"the header of {name}"
    return MappingProxyType(_json_object(decode(protected, what), what))


_remembered_header = lru_cache(_REMEMBERED_HEADERS)(_header)


def _tampered(name: str) -> RejectedBlobError:
    return RejectedBlobError(
        f"{name} does not authenticate: it was changed, or made with another key",
        hint="compare it with the stored original",
    )


def _json_object(text: bytes, name: str) -> dict[str, object]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise RejectedBlobError(f"{name} is not a JSON object")
    return value


def encode(data: bytes | bytearray) -> bytes:
    """Return base64url without padding (RFC 7515, section 2)."""
    return binascii.b2a_base64(data, newline=False).translate(_TO_URL).rstrip(b"=")


def decode(text: bytes, name: str) -> bytes:
    """Return what `encode` was given; RejectedBlobError, naming `name`, for another text."""
    try:
        return binascii.a2b_base64(
            text.translate(_FROM_URL) + b"=" * (-len(text) % 4), strict_mode=True
        )
    except ValueError:
        raise RejectedBlobError(f"{name} is not base64url") from None
