"""Whoever makes the IV of AES-GCM, the caller or an HSM in FIPS mode, the blob is the same kind."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from hsm_plugin.errors import HsmUnavailableError, RejectedBlobError, UnsupportedError
from hsm_plugin.gcm_iv import GcmIv
from tests.contract.key_stores import faulty_pkcs11_store
from tests.support.faults import Ckr, FaultyHsm, GcmIvOf, make_faulty
from tests.support.softhsm import make_token

KEK = b"kek"


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> FaultyHsm:
    """A token with a KEK."""
    faulty = make_faulty(make_token(tmp_path_factory.mktemp("token")))
    with faulty_pkcs11_store(faulty) as store:
        store.generate_kek(KEK)
    return faulty


@pytest.fixture
def hsm(token: FaultyHsm) -> Iterator[FaultyHsm]:
    """That token, without faults before and after."""
    yield token
    token.heal()
    token.make_gcm_ivs(GcmIvOf.CALLER)


@pytest.mark.parametrize("ivs", [GcmIvOf.TOKEN, GcmIvOf.TOKEN_IN_ITS_PLACE])
@pytest.mark.parametrize("setting", [GcmIv.AUTO, GcmIv.TOKEN])
def test_the_tokens_own_iv_is_in_the_blob_and_nothing_of_it_can_be_changed(
    hsm: FaultyHsm, ivs: GcmIvOf, setting: GcmIv
) -> None:
    hsm.make_gcm_ivs(ivs)
    with faulty_pkcs11_store(hsm, setting) as store:
        sealed, other = (store.wrap(KEK, b"plaintext", b"aad") for _ in range(2))
        assert [len(part) for part in (sealed.iv, sealed.ciphertext, sealed.tag)] == [16, 9, 16]
        assert sealed.iv != other.iv
        assert store.unwrap(KEK, sealed, b"aad") == b"plaintext"
        for changed in (
            replace(sealed, iv=other.iv),
            replace(sealed, tag=sealed.iv),
            replace(sealed, ciphertext=other.ciphertext),
        ):
            with pytest.raises(RejectedBlobError):
                store.unwrap(KEK, changed, b"aad")


@pytest.mark.parametrize("written", GcmIvOf)
@pytest.mark.parametrize("read", GcmIvOf)
def test_a_blob_of_one_kind_of_token_opens_in_the_other(
    hsm: FaultyHsm, written: GcmIvOf, read: GcmIvOf
) -> None:
    hsm.make_gcm_ivs(written)
    with faulty_pkcs11_store(hsm) as store:
        sealed = store.wrap(KEK, b"plaintext", b"aad")
        hsm.make_gcm_ivs(read)
        assert store.unwrap(KEK, sealed, b"aad") == b"plaintext"
        with pytest.raises(RejectedBlobError):
            store.unwrap(KEK, sealed, b"other aad")


def test_a_token_that_refuses_the_callers_iv_is_asked_once_for_each_connection(
    hsm: FaultyHsm,
) -> None:
    hsm.make_gcm_ivs(GcmIvOf.TOKEN)
    with faulty_pkcs11_store(hsm) as store:
        for _ in range(2):
            before = hsm.calls("C_EncryptInit")
            for _ in range(3):
                store.wrap(KEK, b"plaintext", b"")
            assert hsm.calls("C_EncryptInit") - before == 4
            store.connect()
        hsm.make_gcm_ivs(GcmIvOf.CALLER)
        store.connect()
        before = hsm.calls("C_EncryptInit")
        store.wrap(KEK, b"plaintext", b"")
        assert hsm.calls("C_EncryptInit") - before == 1


def test_a_token_that_is_told_to_make_the_iv_is_never_given_one(hsm: FaultyHsm) -> None:
    hsm.make_gcm_ivs(GcmIvOf.TOKEN)
    before = hsm.calls("C_EncryptInit")
    with faulty_pkcs11_store(hsm, GcmIv.TOKEN) as store:
        store.wrap(KEK, b"plaintext", b"")
    assert hsm.calls("C_EncryptInit") - before == 1


def test_with_the_callers_iv_alone_a_refusal_says_which_setting_helps(hsm: FaultyHsm) -> None:
    hsm.make_gcm_ivs(GcmIvOf.TOKEN)
    with faulty_pkcs11_store(hsm, GcmIv.CALLER) as store:
        with pytest.raises(UnsupportedError, match="CKR_MECHANISM_PARAM_INVALID") as caught:
            store.wrap(KEK, b"plaintext", b"")
        assert "--gcm-iv auto" in caught.value.hint
        hsm.make_gcm_ivs(GcmIvOf.CALLER)
        assert store.wrap(KEK, b"plaintext", b"").iv


def test_a_token_that_makes_no_iv_writes_no_blob_without_one(hsm: FaultyHsm) -> None:
    with (
        faulty_pkcs11_store(hsm, GcmIv.TOKEN) as store,
        pytest.raises(UnsupportedError, match=r"token cannot do this|neither a tag"),
    ):
        store.wrap(KEK, b"plaintext", b"")


def test_a_refusal_that_the_tokens_own_iv_does_not_mend_changes_nothing(hsm: FaultyHsm) -> None:
    with faulty_pkcs11_store(hsm) as store:
        hsm.refuse(0x71, "C_EncryptInit")
        with pytest.raises(UnsupportedError):
            store.wrap(KEK, b"plaintext", b"")
        hsm.heal()
        before = hsm.calls("C_EncryptInit")
        store.wrap(KEK, b"plaintext", b"")
        assert hsm.calls("C_EncryptInit") - before == 1


def test_another_failure_is_not_taken_for_a_refusal_of_the_iv(hsm: FaultyHsm) -> None:
    with faulty_pkcs11_store(hsm) as store:
        hsm.refuse(Ckr.DEVICE_ERROR, "C_EncryptInit")
        before = hsm.calls("C_EncryptInit")
        with pytest.raises(HsmUnavailableError):
            store.wrap(KEK, b"plaintext", b"")
        assert hsm.calls("C_EncryptInit") - before == 1
