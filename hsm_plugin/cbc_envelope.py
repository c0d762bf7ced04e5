"""The blobs of a KEK for AES-CBC, in the form that the reference gives them, pure.

A compact JWE whose alg and enc are both "A256CBC", which is no algorithm of RFC 7518: the key of
the HMAC-SHA256 is a key of its own, its tag has all 32 bytes, and the length of the additional
data is counted in bytes. `kid` is the KEK's CKA_ID in hexadecimal, `_thales_aad` the length of the
plaintext as eight bytes, in network order, and the plaintext is filled up with zeros. `cty` is
"JWT" for what Kubernetes encrypts, as the reference has it; it has no such form for DEKs, which
bear "jwk+json" (RFC 7517, section 8.5.1) here, so that neither passes for the other.
"""

import json

from hsm_plugin.envelope import CompactJwe, decode, encode
from hsm_plugin.errors import RejectedBlobError

ALGORITHM = "A256CBC"
IV_BYTES = 16
BLOCK_BYTES = 16
TAG_BYTES = 32
_LENGTH_BYTES = 8
_MAX_FILL = 2 * BLOCK_BYTES
"""The reference adds a block of its own to a plaintext of whole blocks."""


def protected_header(kek_id: bytes, content_type: str, plaintext_bytes: int) -> bytes:
    """Return the encoded header, its members in the reference's order."""
    members = {
        "alg": ALGORITHM,
        "kid": kek_id.hex(),
        "typ": "JWT",
        "cty": content_type,
        "_thales_aad": encode(plaintext_bytes.to_bytes(_LENGTH_BYTES)).decode(),
        "enc": ALGORITHM,
    }
    return encode(json.dumps(members, separators=(",", ":")).encode())


def kek_id_of(jwe: CompactJwe, name: str) -> bytes:
    """Return the id in the header; RejectedBlobError when it is no hexadecimal."""
    try:
        return bytes.fromhex(jwe.kid)
    except ValueError:
        raise RejectedBlobError(f"the kid of {name} is not the hexadecimal id of a KEK") from None


def plaintext_bytes_of(jwe: CompactJwe, name: str) -> int:
    """Return the plaintext's length; RejectedBlobError when it does not fit the ciphertext."""
    text = jwe.header.get("_thales_aad")
    if not isinstance(text, str) or not text.isascii():
        raise RejectedBlobError(f"the header of {name} has no usable length")
    length = decode(text.encode(), f"the length of {name}")
    ciphertext = len(jwe.ciphertext)
    if len(length) != _LENGTH_BYTES or not ciphertext or ciphertext % BLOCK_BYTES:
        raise RejectedBlobError(f"{name} has a body or a length of the wrong size")
    plaintext = int.from_bytes(length)
    if not 0 <= ciphertext - plaintext < _MAX_FILL:
        raise RejectedBlobError(f"the length in the header of {name} is not that of its body")
    return plaintext


def filled_up(plaintext: bytes) -> bytes:
    """Return the plaintext with zeros behind it: whole blocks, at least one."""
    blocks = max(1, -(-len(plaintext) // BLOCK_BYTES))
    return plaintext.ljust(blocks * BLOCK_BYTES, b"\0")


def mac_input(aad: bytes, iv: bytes, ciphertext: bytes) -> bytes:
    """Return what the HMAC is computed of."""
    return aad + iv + ciphertext + len(aad).to_bytes(_LENGTH_BYTES)
