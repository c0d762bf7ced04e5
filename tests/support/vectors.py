"""What the reference plugin wrote: blobs, and the token that opens them."""

import base64
import json
from dataclasses import dataclass, field
from pathlib import Path

from tests.support import softhsm

_FOLDER = Path(__file__).parent.parent / "vectors"
_TOKEN = _FOLDER / "softhsm-2.6.1-token"

DEK_JWK = (
    b'{"key_ops":["encrypt","decrypt","sign","verify"],"alg":"A256GCM",'
    b'"kid":"b7a62308683780fbd429de155fd3299f7f614939b665b58ef18ddc5b5af8bfc1",'
    b'"k":"l50D_N5_RdCxd2-CG8Fj_05D6xCNn46jmZgzgCtgFS4","kty":"oct"}'
)
"""The plaintext of the reference's DEK blob; it guards nothing but these vectors."""


@dataclass(frozen=True, slots=True)
class Ciphertext:
    """One AuthenticatedEncrypt of the reference."""

    plaintext: bytes = field(repr=False)
    aad: bytes
    blob: bytes


@dataclass(frozen=True, slots=True)
class Interop:
    """The blobs of one run of the reference."""

    kek_id: bytes
    dek_blob: bytes
    skey_blob: bytes
    skey_pem: bytes = field(repr=False)
    ciphertexts: tuple[Ciphertext, ...]


def interop() -> Interop:
    """Return the blobs."""
    kept = json.loads((_FOLDER / "interop.json").read_text())
    return Interop(
        kek_id=kept["kek_kid"].encode(),
        dek_blob=kept["encrypted_dek_blob"].encode(),
        skey_blob=kept["encrypted_skey_blob"].encode(),
        skey_pem=kept["skey_pem"].encode(),
        ciphertexts=tuple(
            Ciphertext(
                plaintext=base64.b64decode(entry["plaintext_b64"]),
                aad=base64.b64decode(entry["aad_b64"]),
                blob=entry["ciphertext"].encode(),
            )
            for entry in kept["aead"]
        ),
    )


def reference_token(folder: Path) -> softhsm.SoftHsm:
    """Return a writable copy of the reference's token, configured under `folder`."""
    return softhsm.copy_token(_TOKEN, folder, label="interop", pin="1234")
