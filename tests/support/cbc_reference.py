"""The reference's AES-CBC blobs, made and opened with keys that are at hand.

Written from its published source: the header's members and their order, zeros behind the
plaintext, a block of zeros more behind the ciphertext of whole blocks, and an HMAC-SHA256 of
header, IV, ciphertext and the header's length in bytes.
"""

import base64
import hashlib
import hmac
import json
import os
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from pkcs11 import Attribute, KeyType, ObjectClass

from tests.support import token_view
from tests.support.softhsm import SoftHsm

_BLOCK = 16


@dataclass(frozen=True, slots=True)
class ReferenceKeys:
    """An AES key and an HMAC key, as the reference looks for them."""

    kek_id: bytes
    kek: bytes = field(default_factory=lambda: os.urandom(32), repr=False)
    mac: bytes = field(default_factory=lambda: os.urandom(32), repr=False)

    def put_into(self, hsm: SoftHsm, *, mac_id: bytes = b"an-id-of-its-own") -> None:
        """Create both in the token, under the reference's labels."""
        with token_view.viewed(hsm) as view:
            _create(view.session, KeyType.AES, "k8s-dek", self.kek_id, self.kek)
            _create(view.session, KeyType.GENERIC_SECRET, "k8s-hmac", mac_id, self.mac)

    def seal(self, plaintext: bytes) -> bytes:
        """Return the blob that the reference's Encrypt of Kubernetes answers."""
        members = {
            "alg": "A256CBC",
            "kid": self.kek_id.hex(),
            "typ": "JWT",
            "cty": "JWT",
            "_thales_aad": _text(len(plaintext).to_bytes(8)),
            "enc": "A256CBC",
        }
        header = _text(json.dumps(members, separators=(",", ":")).encode()).encode()
        iv = os.urandom(_BLOCK)
        encryptor = Cipher(algorithms.AES(self.kek), modes.CBC(iv)).encryptor()
        filled = plaintext + bytes(-len(plaintext) % _BLOCK)
        room = (len(plaintext) // _BLOCK + 1) * _BLOCK
        ciphertext = (encryptor.update(filled) + encryptor.finalize()).ljust(room, b"\0")
        tag = self._tag(header, iv, ciphertext)
        return ".".join([header.decode(), "", *map(_text, (iv, ciphertext, tag))]).encode()

    def open(self, blob: bytes) -> tuple[dict[str, str], bytes]:
        """Return header and plaintext as the reference's Decrypt of Kubernetes reads them."""
        header, key, *rest = blob.split(b".")
        assert key == b""
        iv, ciphertext, tag = map(_bytes, rest)
        assert hmac.compare_digest(self._tag(header, iv, ciphertext), tag)
        members = json.loads(_bytes(header))
        length = int.from_bytes(_bytes(members["_thales_aad"].encode()))
        decryptor = Cipher(algorithms.AES(self.kek), modes.CBC(iv)).decryptor()
        return members, (decryptor.update(ciphertext) + decryptor.finalize())[:length]

    def _tag(self, header: bytes, iv: bytes, ciphertext: bytes) -> bytes:
        data = header + iv + ciphertext + len(header).to_bytes(8)
        return hmac.digest(self.mac, data, hashlib.sha256)


def _create(session: Any, kind: KeyType, label: str, key_id: bytes, value: bytes) -> None:
    session.create_object(
        {
            Attribute.CLASS: ObjectClass.SECRET_KEY,
            Attribute.KEY_TYPE: kind,
            Attribute.LABEL: label,
            Attribute.ID: key_id,
            Attribute.TOKEN: True,
            Attribute.PRIVATE: True,
            Attribute.SENSITIVE: True,
            Attribute.EXTRACTABLE: False,
            Attribute.ENCRYPT: True,
            Attribute.DECRYPT: True,
            Attribute.SIGN: True,
            Attribute.VERIFY: True,
            Attribute.VALUE: value,
        }
    )


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(text: bytes) -> bytes:
    return base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4))
