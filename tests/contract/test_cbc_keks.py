"""A KEK for AES-CBC keeps what a KEK for AES-GCM keeps: nothing changed comes out of it."""

import os
from dataclasses import replace

import pytest
from pkcs11 import ObjectClass

from hsm_plugin.errors import ConflictError, KeyNotFoundError, RejectedBlobError
from hsm_plugin.keys import KekCipher, KeyStore, Sealed
from tests.contract.conftest import Session
from tests.support.cbc_reference import ReferenceKeys
from tests.support.token_view import viewed

_SECRET = ObjectClass.SECRET_KEY
CBC, GCM = KekCipher.CBC, KekCipher.GCM
BLOCKS = b"sixteen bytes..." * 3


def new_id() -> bytes:
    return b"cbc-" + os.urandom(8).hex().encode()


@pytest.fixture
def kek(store: KeyStore) -> bytes:
    kek_id = new_id()
    assert store.generate_kek(kek_id, CBC)
    return kek_id


def test_what_it_wraps_it_unwraps(store: KeyStore, kek: bytes) -> None:
    sealed = store.wrap(kek, BLOCKS, b"aad", CBC)
    assert (len(sealed.iv), len(sealed.ciphertext), len(sealed.tag)) == (16, 48, 32)
    assert sealed.cipher is CBC
    assert store.unwrap(kek, sealed, b"aad") == BLOCKS
    assert store.wrap(kek, BLOCKS, b"aad", CBC).iv != sealed.iv


def test_it_is_made_once_and_is_no_kek_for_gcm(store: KeyStore, kek: bytes) -> None:
    assert not store.generate_kek(kek, CBC)
    with pytest.raises(KeyNotFoundError):
        store.wrap(kek, BLOCKS, b"")
    assert store.generate_kek(kek, GCM)
    assert store.unwrap(kek, store.wrap(kek, b"x", b""), b"") == b"x"


@pytest.mark.parametrize("part", ["iv", "ciphertext", "tag"])
@pytest.mark.parametrize("position", [0, -1])
def test_one_changed_bit_is_refused_in_the_same_words(
    store: KeyStore, kek: bytes, part: str, position: int
) -> None:
    sealed = store.wrap(kek, BLOCKS, b"aad", CBC)

    def flipped(name: str, value: bytes) -> bytes:
        changed = bytearray(value)
        changed[position] ^= name == part
        return bytes(changed)

    changed = Sealed(
        iv=flipped("iv", sealed.iv),
        ciphertext=flipped("ciphertext", sealed.ciphertext),
        tag=flipped("tag", sealed.tag),
        cipher=CBC,
    )
    with pytest.raises(RejectedBlobError) as caught:
        store.unwrap(kek, changed, b"aad")
    with pytest.raises(RejectedBlobError) as other:
        store.unwrap(kek, sealed, b"other aad")
    assert str(caught.value) == str(other.value)
    assert store.unwrap(kek, sealed, b"aad") == BLOCKS


def test_bytes_do_not_move_between_the_parts_that_are_authenticated(
    store: KeyStore, kek: bytes
) -> None:
    aad = b"a" * 32
    sealed = store.wrap(kek, BLOCKS, aad, CBC)
    moved = [
        (
            aad + sealed.iv,
            replace(sealed, iv=sealed.ciphertext[:16], ciphertext=sealed.ciphertext[16:]),
        ),
        (aad[:16], replace(sealed, iv=aad[16:], ciphertext=sealed.iv + sealed.ciphertext)),
        (aad + sealed.iv, replace(sealed, iv=b"")),
        (aad, replace(sealed, ciphertext=b"")),
        (aad, replace(sealed, tag=sealed.tag[:16])),
        (aad, replace(sealed, tag=b"")),
    ]
    for other_aad, changed in moved:
        with pytest.raises(RejectedBlobError, match="does not authenticate"):
            store.unwrap(kek, changed, other_aad)


def test_another_keks_wrapping_is_refused(store: KeyStore, kek: bytes) -> None:
    other = new_id()
    store.generate_kek(other, CBC)
    with pytest.raises(RejectedBlobError):
        store.unwrap(other, store.wrap(kek, BLOCKS, b"", CBC), b"")


def test_a_blob_of_one_cipher_is_not_opened_by_the_other(store: KeyStore, kek: bytes) -> None:
    store.generate_kek(kek, GCM)
    cbc, gcm = store.wrap(kek, BLOCKS, b"", CBC), store.wrap(kek, BLOCKS, b"", GCM)
    for confused in (replace(cbc, cipher=GCM, tag=cbc.tag[:16]), replace(gcm, cipher=CBC)):
        with pytest.raises(RejectedBlobError):
            store.unwrap(kek, confused, b"")


def test_an_unknown_kek_is_not_found(store: KeyStore, kek: bytes) -> None:
    sealed = store.wrap(kek, BLOCKS, b"", CBC)
    for call in (
        lambda: store.wrap(b"missing", BLOCKS, b"", CBC),
        lambda: store.unwrap(b"missing", sealed, b""),
        lambda: store.destroy_kek(b"missing", CBC),
        lambda: store.destroy_kek(b"missing", GCM),
    ):
        with pytest.raises(KeyNotFoundError, match="missing"):
            call()


@pytest.mark.parametrize("cipher", [CBC, GCM])
def test_a_destroyed_kek_opens_nothing_any_more(store: KeyStore, cipher: KekCipher) -> None:
    kept, gone = new_id(), new_id()
    for kek_id in (kept, gone):
        store.generate_kek(kek_id, cipher)
    sealed = {kek_id: store.wrap(kek_id, BLOCKS, b"", cipher) for kek_id in (kept, gone)}
    store.destroy_kek(gone, cipher)
    with pytest.raises(KeyNotFoundError):
        store.unwrap(gone, sealed[gone], b"")
    with pytest.raises(KeyNotFoundError):
        store.destroy_kek(gone, cipher)
    assert store.unwrap(kept, sealed[kept], b"") == BLOCKS
    assert store.generate_kek(gone, cipher)
    with pytest.raises(RejectedBlobError):
        store.unwrap(gone, sealed[gone], b"")


def test_keys_of_the_reference_are_used_and_outlive_keks_that_are_made_beside_them(
    session: Session,
) -> None:
    session.close()
    keys = ReferenceKeys(new_id())
    keys.put_into(session.hsm, mac_id=b"mac-of-the-reference")
    store = session.reopen()
    sealed = store.wrap(keys.kek_id, BLOCKS, b"aad", CBC)
    assert store.unwrap(keys.kek_id, sealed, b"aad") == BLOCKS
    assert not store.generate_kek(keys.kek_id, CBC)
    store.generate_kek(new_id(), CBC)
    assert session.reopen().unwrap(keys.kek_id, sealed, b"aad") == BLOCKS


def test_a_kek_whose_making_was_interrupted_is_completed(session: Session) -> None:
    store, kek_id = session.store, new_id()
    store.generate_kek(kek_id, CBC)
    session.close()
    with viewed(session.hsm) as view:
        for mac in [entry for entry in view.objects(_SECRET, kek_id) if entry.label == "k8s-hmac"]:
            mac.destroy()
        for stray in [entry for entry in view.objects(_SECRET) if entry.id[:4] == b"mac-"]:
            stray.destroy()
    store = session.reopen()
    with pytest.raises(KeyNotFoundError, match="k8s-hmac"):
        store.wrap(kek_id, BLOCKS, b"", CBC)
    assert store.generate_kek(kek_id, CBC)
    assert store.unwrap(kek_id, store.wrap(kek_id, BLOCKS, b"", CBC), b"") == BLOCKS


def test_two_hmac_keys_that_could_be_meant_are_a_conflict(session: Session) -> None:
    session.close()
    first, second = ReferenceKeys(new_id()), ReferenceKeys(new_id())
    first.put_into(session.hsm, mac_id=b"mac-1")
    second.put_into(session.hsm, mac_id=b"mac-2")
    store = session.reopen()
    for keys in (first, second):
        with pytest.raises(ConflictError, match='2 objects "k8s-hmac"'):
            store.unwrap(keys.kek_id, Sealed(b"i" * 16, b"c" * 16, b"t" * 32, CBC), b"")
