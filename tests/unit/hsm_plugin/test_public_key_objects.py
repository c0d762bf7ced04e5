"""A public key object of the token: read, or refused, whoever wrote it."""

from collections.abc import Mapping, Sequence

import pytest

from hsm_plugin.errors import UnsupportedError
from hsm_plugin.keys import KeyAlgorithm
from hsm_plugin.pkcs11_store_constants import Attribute, KeyType
from hsm_plugin.pkcs11_store_objects import read_public_key

_P256 = bytes.fromhex("06082a8648ce3d030107")
_ED25519 = bytes.fromhex("06032b6570")
_MODULUS = (1 << 2047 | 1).to_bytes(256)


class Token:
    """The part of the module that reads attributes."""

    def __init__(self, kind: KeyType, attributes: Mapping[Attribute, bytes]) -> None:
        self._attributes = {Attribute.KEY_TYPE: int(kind).to_bytes(8, "little"), **attributes}

    def read(self, _session: int, _handle: int, types: Sequence[Attribute]) -> list[bytes]:
        return [self._attributes[kind] for kind in types]


def read(kind: KeyType, attributes: Mapping[Attribute, bytes]) -> KeyAlgorithm:
    token = Token(kind, attributes)
    return read_public_key(token, 1, 2, b"ca").algorithm  # type: ignore[arg-type] # the part it uses


@pytest.mark.parametrize(
    ("kind", "attributes"),
    [
        (KeyType.EC, {Attribute.EC_PARAMS: _P256, Attribute.EC_POINT: b"\x04" + bytes(64)}),
        (KeyType.EC, {Attribute.EC_PARAMS: _P256, Attribute.EC_POINT: b""}),
        (KeyType.EC_EDWARDS, {Attribute.EC_PARAMS: _ED25519, Attribute.EC_POINT: b"short"}),
        (KeyType.RSA, {Attribute.MODULUS: _MODULUS, Attribute.PUBLIC_EXPONENT: b"\1"}),
        (KeyType.RSA, {Attribute.MODULUS: b"", Attribute.PUBLIC_EXPONENT: b""}),
    ],
)
def test_a_public_half_that_is_none_is_a_fault_of_that_key_alone(
    kind: KeyType, attributes: Mapping[Attribute, bytes]
) -> None:
    with pytest.raises(UnsupportedError, match="malformed"):
        read(kind, attributes)


def test_a_sound_one_is_read() -> None:
    attributes = {Attribute.MODULUS: _MODULUS, Attribute.PUBLIC_EXPONENT: b"\1\0\1"}
    assert read(KeyType.RSA, attributes) is KeyAlgorithm.RSA_2048
