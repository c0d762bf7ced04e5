"""The header of an AES-CBC blob says its KEK, its purpose and its length, and nothing vague."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsm_plugin import cbc_envelope, kek_blobs
from hsm_plugin.envelope import serialize
from hsm_plugin.errors import RejectedBlobError
from hsm_plugin.kek_blobs import Purpose
from hsm_plugin.keys import KekCipher, Sealed

SEALED = Sealed(b"i" * 16, b"c" * 32, b"t" * 32, KekCipher.CBC)


def blob(changed: dict[str, object], sealed: Sealed = SEALED) -> bytes:
    """Return a blob whose header has other members than it should."""
    text = cbc_envelope.protected_header(b"kek", Purpose.DEK.content_type, 20)
    members = json.loads(base64.urlsafe_b64decode(text + b"=="))
    header = {name: value for name, value in (members | changed).items() if value is not None}
    return serialize(base64.urlsafe_b64encode(json.dumps(header).encode()).rstrip(b"="), sealed)


def length(value: int, size: int = 8) -> str:
    return base64.urlsafe_b64encode(value.to_bytes(size)).rstrip(b"=").decode()


def test_a_sound_blob_is_read_whole() -> None:
    parsed = kek_blobs.parse(blob({}), Purpose.DEK, "it")
    assert (parsed.kek_id, parsed.kid, parsed.plaintext_bytes) == (b"kek", b"kek".hex(), 20)
    assert parsed.sealed == SEALED


@pytest.mark.parametrize(
    "changed",
    [
        {"alg": "dir"},
        {"alg": None},
        {"enc": "A256CBC-HS512"},
        {"enc": "A256GCM"},
        {"kid": "kek"},
        {"kid": None},
        {"kid": "6b656"},
        {"cty": "JWT"},
        {"cty": None},
        {"crit": ["x"]},
        {"zip": "DEF"},
        {"_thales_aad": None},
        {"_thales_aad": 20},
        {"_thales_aad": "é"},
        {"_thales_aad": length(20, 4)},
        {"_thales_aad": length(20, 9)},
        {"_thales_aad": length(33)},
        {"_thales_aad": length(0)},
        {"_thales_aad": length((1 << 64) - 1)},
    ],
    ids=str,
)
def test_another_header_is_refused(changed: dict[str, object]) -> None:
    with pytest.raises(RejectedBlobError):
        kek_blobs.parse(blob(changed), Purpose.DEK, "it")


@pytest.mark.parametrize(
    "sealed",
    [
        Sealed(b"i" * 12, b"c" * 32, b"t" * 32),
        Sealed(b"", b"c" * 32, b"t" * 32),
        Sealed(b"i" * 16, b"c" * 31, b"t" * 32),
        Sealed(b"i" * 16, b"", b"t" * 32),
        Sealed(b"i" * 16, b"c" * 32, b"t" * 16),
        Sealed(b"i" * 16, b"c" * 32, b""),
    ],
)
def test_parts_of_another_length_are_refused(sealed: Sealed) -> None:
    with pytest.raises(RejectedBlobError):
        kek_blobs.parse(blob({}, sealed), Purpose.DEK, "it")


@given(st.binary(max_size=100))
def test_what_is_filled_up_is_whole_blocks_and_one_at_least(plaintext: bytes) -> None:
    filled = cbc_envelope.filled_up(plaintext)
    assert filled.startswith(plaintext)
    assert len(filled) >= 16
    assert len(filled) % 16 == 0
    assert len(filled) - len(plaintext) <= 16
    assert not any(filled[len(plaintext) :])
