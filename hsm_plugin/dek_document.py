"""A wrapped DEK as it is kept: the bare blob, or a Secret's data with the KEK's id beside it."""

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any

from hsm_plugin import kek_blobs
from hsm_plugin.errors import BadRequestError
from hsm_plugin.kek_blobs import Purpose

KEK_ID, ENCRYPTED_DEK = "kek-id", "encrypted-dek"


@dataclass(frozen=True, slots=True)
class DekDocument:
    """What one file or Secret holds."""

    kek_id: bytes
    """Of the KEK that wraps it."""
    blob: bytes
    _content: bytes
    _secret: dict[str, Any] | None
    """The JSON; None for a bare blob."""

    def with_dek(self, kek_id: bytes, blob: bytes) -> bytes:
        """Return the content with another wrapping; the rest of it is as it was."""
        if self._secret is None:
            return self._content.replace(self.blob, blob)
        values = {KEK_ID: kek_id, ENCRYPTED_DEK: blob}
        encoded = {name: base64.b64encode(value).decode() for name, value in values.items()}
        if isinstance(self._secret.get("data"), dict):
            changed = self._secret | {"data": self._secret["data"] | encoded}
        else:
            changed = self._secret | encoded
        return json.dumps(changed, indent=4).encode() + b"\n"


def read(content: bytes, name: str) -> DekDocument:
    """Return what is kept; BadRequestError, naming `name`, when it is no wrapped DEK.

    A Secret is the JSON of `kubectl get secret -o json`, or of its data alone.
    """
    secret = None
    if content.lstrip().startswith(b"{"):
        secret, blob, kek_id = _secret(content, name)
    else:
        blob, kek_id = content.strip(), b""
    wrapped = kek_blobs.parse(blob, Purpose.DEK, name)
    if secret is not None and wrapped.kek_id != kek_id:
        raise BadRequestError(
            f"{name} names another KEK than the one that wraps its DEK",
            hint="it was changed in part; restore both kek-id and encrypted-dek from one backup",
        )
    return DekDocument(wrapped.kek_id, blob, content, secret)


def _secret(content: bytes, name: str) -> tuple[dict[str, Any], bytes, bytes]:
    try:
        document = json.loads(content)
        data = document.get("data", document)
        blob, kek_id = (
            base64.b64decode(data[key], validate=True) for key in (ENCRYPTED_DEK, KEK_ID)
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error):
        raise BadRequestError(
            f"{name} is not a Secret with {KEK_ID} and {ENCRYPTED_DEK}",
            hint="get it with: kubectl get secret istio-ca-encrypted-key -n istio-system -o json",
        ) from None
    return document, blob, kek_id
