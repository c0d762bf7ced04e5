"""Ids are short and visible; key material has no repr."""

import hashlib

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from hsm_plugin.errors import BadRequestError
from hsm_plugin.keys import KeyAlgorithm, KeyKind, SignatureAlgorithm, checked_id

_HASHES: dict[SignatureAlgorithm, hashes.HashAlgorithm] = {
    SignatureAlgorithm.RSA_PKCS1_SHA256: hashes.SHA256(),
    SignatureAlgorithm.RSA_PKCS1_SHA384: hashes.SHA384(),
    SignatureAlgorithm.RSA_PKCS1_SHA512: hashes.SHA512(),
}


@pytest.mark.parametrize(
    "value", [b"k", b"a" * 128, b"7651a4ea-eeb7-4c1f-927b-8c871c2127aa", b"!~"]
)
def test_a_short_visible_id_is_taken(value: bytes) -> None:
    assert checked_id(value, "KEK id") == value


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", "KEK id is empty"),
        (b"a" * 129, "KEK id has 129 bytes"),
        (b"a" * 1_000_000, "KEK id has 1000000 bytes"),
        (b"with space", "not visible ASCII"),
        (b"line\n", "not visible ASCII"),
        (b"nul\0", "not visible ASCII"),
        (b"\x7f", "not visible ASCII"),
        ("kek-ü".encode(), "not visible ASCII"),
        (b"\xff\xff", "not visible ASCII"),
    ],
)
def test_any_other_id_is_refused_with_a_hint(value: bytes, reason: str) -> None:
    with pytest.raises(BadRequestError, match=reason) as caught:
        checked_id(value, "KEK id")
    assert caught.value.hint


def test_only_rsa_algorithms_have_a_modulus() -> None:
    assert {entry.rsa_bits for entry in KeyAlgorithm if entry.kind is KeyKind.RSA} == {
        2048,
        3072,
        4096,
    }
    with pytest.raises(KeyError):
        _ = KeyAlgorithm.ECDSA_P256.rsa_bits


@pytest.mark.parametrize("algorithm", SignatureAlgorithm)
def test_each_algorithm_says_what_is_signed_and_by_which_key(algorithm: SignatureAlgorithm) -> None:
    family = algorithm.value.partition("-")[0]
    kinds = {"rsa": KeyKind.RSA, "ecdsa": KeyKind.EC, "eddsa": KeyKind.EDWARDS}
    assert algorithm.kind is kinds[family]
    assert algorithm.is_pss is ("pss" in algorithm.value)
    assert bool(algorithm.digest_info) is ("pkcs1" in algorithm.value)
    assert (algorithm.digest_bytes is None) is (family == "eddsa")


@pytest.mark.parametrize("algorithm", _HASHES)
def test_a_digest_info_is_the_one_that_cryptography_checks(algorithm: SignatureAlgorithm) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    digest = hashlib.new(_HASHES[algorithm].name, b"message").digest()
    assert len(digest) == algorithm.digest_bytes
    encoded = algorithm.digest_info + digest
    size = key.key_size // 8
    block = b"\x00\x01" + b"\xff" * (size - len(encoded) - 3) + b"\x00" + encoded
    numbers = key.private_numbers()
    signature = pow(int.from_bytes(block), numbers.d, numbers.public_numbers.n).to_bytes(size)
    key.public_key().verify(signature, digest, padding.PKCS1v15(), Prehashed(_HASHES[algorithm]))
