"""A KeyStore opens what the reference plugin wrapped, on the reference's own token."""

import pytest

from hsm_plugin.envelope import parse
from hsm_plugin.errors import KeyNotFoundError, RejectedBlobError
from hsm_plugin.keys import KeyStore
from tests.support import vectors

REFERENCE = vectors.interop()
JWE = parse(REFERENCE.dek_blob, "it")


def test_the_references_dek_is_unwrapped_byte_for_byte(reference_store: KeyStore) -> None:
    jwk = reference_store.unwrap(REFERENCE.kek_id, JWE.sealed, JWE.protected)
    assert jwk == vectors.DEK_JWK


def test_the_references_dek_under_another_header_is_refused(reference_store: KeyStore) -> None:
    with pytest.raises(RejectedBlobError):
        reference_store.unwrap(REFERENCE.kek_id, JWE.sealed, JWE.protected + b"A")


def test_the_references_kek_is_found_and_no_second_one_is_made(reference_store: KeyStore) -> None:
    assert not reference_store.generate_kek(REFERENCE.kek_id)
    assert reference_store.unwrap(REFERENCE.kek_id, JWE.sealed, JWE.protected)


def test_the_references_token_has_no_signing_key_of_that_id(reference_store: KeyStore) -> None:
    with pytest.raises(KeyNotFoundError):
        reference_store.signing_key(REFERENCE.kek_id)


def test_the_references_token_has_no_roots(reference_store: KeyStore) -> None:
    assert reference_store.roots() == []
