"""What every KeyStore does, on a real token."""

import hashlib
import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from hsm_plugin.errors import ConflictError, KeyNotFoundError, RejectedBlobError
from hsm_plugin.keys import (
    KeyAlgorithm,
    KeyStore,
    Sealed,
    SignatureAlgorithm,
    SigningKey,
    TrustedRoot,
)
from tests.contract.conftest import Session
from tests.support import pki

_HASHES: dict[SignatureAlgorithm, hashes.HashAlgorithm] = {
    SignatureAlgorithm.RSA_PKCS1_SHA256: hashes.SHA256(),
    SignatureAlgorithm.RSA_PKCS1_SHA384: hashes.SHA384(),
    SignatureAlgorithm.RSA_PKCS1_SHA512: hashes.SHA512(),
    SignatureAlgorithm.ECDSA_SHA256: hashes.SHA256(),
    SignatureAlgorithm.ECDSA_SHA384: hashes.SHA384(),
}
_FITTING = [
    (key, signature)
    for key, signature in itertools.product(KeyAlgorithm, SignatureAlgorithm)
    if key.is_rsa is signature.is_rsa
]
_numbers = itertools.count()


def new_id(kind: str = "key") -> bytes:
    """Return an id that no other test uses."""
    return f"{kind}-{next(_numbers)}".encode()


@pytest.fixture
def kek(store: KeyStore) -> bytes:
    kek_id = new_id("kek")
    store.generate_kek(kek_id)
    return kek_id


@pytest.fixture(scope="module")
def resident(session: Session) -> dict[KeyAlgorithm, SigningKey]:
    """One key of each algorithm, made once, since RSA-4096 takes its time."""
    return {
        algorithm: session.store.generate_signing_key(
            f"resident-{algorithm.value}".encode(), algorithm
        )[0]
        for algorithm in KeyAlgorithm
    }


def verify(key: SigningKey, algorithm: SignatureAlgorithm, digest: bytes, signature: bytes) -> None:
    public = serialization.load_der_public_key(key.public_key)
    prehashed = Prehashed(_HASHES[algorithm])
    if isinstance(public, rsa.RSAPublicKey):
        public.verify(signature, digest, padding.PKCS1v15(), prehashed)
    else:
        assert isinstance(public, ec.EllipticCurvePublicKey)
        public.verify(signature, digest, ec.ECDSA(prehashed))


def flipped(data: bytes, position: int = 0) -> bytes:
    changed = bytearray(data)
    changed[position] ^= 1
    return bytes(changed)


# -- KEKs ----------------------------------------------------------------------------------


def test_a_kek_is_made_once_and_found_afterwards(store: KeyStore) -> None:
    kek_id = new_id("kek")
    assert store.generate_kek(kek_id)
    assert not store.generate_kek(kek_id)


def test_a_kek_of_many_simultaneous_calls_is_made_once(store: KeyStore) -> None:
    kek_id = new_id("kek")
    with ThreadPoolExecutor(16) as pool:
        made = list(pool.map(store.generate_kek, [kek_id] * 16))
    assert made.count(True) == 1
    assert store.wrap(kek_id, b"one key only", b"").ciphertext


@pytest.mark.parametrize("kek_id", [b"!", b"k" * 128, b"7651a4ea-eeb7-4c1f-927b-8c871c2127aa"])
def test_ids_of_every_length_name_a_kek(store: KeyStore, kek_id: bytes) -> None:
    store.generate_kek(kek_id)
    sealed = store.wrap(kek_id, b"plaintext", b"aad")
    assert store.unwrap(kek_id, sealed, b"aad") == b"plaintext"


@pytest.mark.parametrize("plaintext", [b"", b"x", b"x" * 16, b"x" * 197, b"x" * 65_536])
@pytest.mark.parametrize("aad", [b"", b"aad", b"a" * 4096])
def test_what_a_kek_wraps_it_unwraps(
    store: KeyStore, kek: bytes, plaintext: bytes, aad: bytes
) -> None:
    sealed = store.wrap(kek, plaintext, aad)
    assert (len(sealed.iv), len(sealed.tag)) == (16, 16)
    assert len(sealed.ciphertext) == len(plaintext)
    assert store.unwrap(kek, sealed, aad) == plaintext


def test_two_wraps_of_one_plaintext_share_no_iv(store: KeyStore, kek: bytes) -> None:
    first, second = (store.wrap(kek, b"plaintext", b"") for _ in range(2))
    assert first.iv != second.iv
    assert first.ciphertext != second.ciphertext


@pytest.mark.parametrize("part", ["iv", "ciphertext", "tag"])
def test_one_changed_bit_is_refused_and_the_store_stays_usable(
    store: KeyStore, kek: bytes, part: str
) -> None:
    sealed = store.wrap(kek, b"plaintext", b"aad")
    match part:
        case "iv":
            changed = replace(sealed, iv=flipped(sealed.iv))
        case "ciphertext":
            changed = replace(sealed, ciphertext=flipped(sealed.ciphertext))
        case _:
            changed = replace(sealed, tag=flipped(sealed.tag))
    with pytest.raises(RejectedBlobError, match="does not authenticate"):
        store.unwrap(kek, changed, b"aad")
    assert store.unwrap(kek, sealed, b"aad") == b"plaintext"


def test_other_additional_data_are_refused(store: KeyStore, kek: bytes) -> None:
    sealed = store.wrap(kek, b"plaintext", b"aad")
    with pytest.raises(RejectedBlobError):
        store.unwrap(kek, sealed, b"other")


def test_another_keks_wrapping_is_refused(store: KeyStore, kek: bytes) -> None:
    other = new_id("kek")
    store.generate_kek(other)
    with pytest.raises(RejectedBlobError):
        store.unwrap(other, store.wrap(kek, b"plaintext", b""), b"")


@pytest.mark.parametrize(
    "sealed",
    [
        Sealed(b"i" * 12, b"", b"t" * 16),
        Sealed(b"i" * 16, b"", b"t" * 16),
        Sealed(b"i" * 16, b"c" * 15, b"t" * 16),
        Sealed(b"\0" * 16, b"\0" * 16, b"\0" * 16),
        Sealed(b"i" * 16, b"c" * 700_000, b"t" * 16),
    ],
    ids=["empty", "empty, long iv", "short", "zeros", "huge"],
)
def test_garbage_is_refused_and_the_store_stays_usable(
    store: KeyStore, kek: bytes, sealed: Sealed
) -> None:
    with pytest.raises(RejectedBlobError):
        store.unwrap(kek, sealed, b"aad")
    assert store.wrap(kek, b"plaintext", b"aad").ciphertext


def test_an_unknown_kek_is_not_found(store: KeyStore, kek: bytes) -> None:
    sealed = store.wrap(kek, b"plaintext", b"")
    missing = new_id("missing")
    with pytest.raises(KeyNotFoundError, match=missing.decode()):
        store.wrap(missing, b"plaintext", b"")
    with pytest.raises(KeyNotFoundError, match=missing.decode()):
        store.unwrap(missing, sealed, b"")


def test_an_id_that_is_the_start_of_anothers_is_not_found(store: KeyStore, kek: bytes) -> None:
    store.generate_kek(kek + b"-longer")
    with pytest.raises(KeyNotFoundError):
        store.wrap((kek + b"-longer")[:-1], b"plaintext", b"")


def test_a_kek_is_not_a_signing_key(store: KeyStore, kek: bytes) -> None:
    with pytest.raises(KeyNotFoundError):
        store.signing_key(kek)
    with pytest.raises(KeyNotFoundError):
        store.sign(kek, SignatureAlgorithm.RSA_PKCS1_SHA256, b"d" * 32)


# -- signing keys --------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", KeyAlgorithm)
def test_a_resident_key_has_the_algorithm_asked_for(
    resident: dict[KeyAlgorithm, SigningKey], algorithm: KeyAlgorithm
) -> None:
    public = serialization.load_der_public_key(resident[algorithm].public_key)
    assert resident[algorithm].algorithm is algorithm
    match public:
        case rsa.RSAPublicKey():
            assert public.key_size == algorithm.rsa_bits
            assert public.public_numbers().e == 65537
        case ec.EllipticCurvePublicKey():
            curve = {"ecdsa-p256": "secp256r1", "ecdsa-p384": "secp384r1"}[algorithm.value]
            assert public.curve.name == curve
        case _:
            pytest.fail("neither RSA nor ECDSA")


@pytest.mark.parametrize("algorithm", KeyAlgorithm)
def test_asking_again_finds_the_same_key(
    store: KeyStore, resident: dict[KeyAlgorithm, SigningKey], algorithm: KeyAlgorithm
) -> None:
    key = resident[algorithm]
    assert store.generate_signing_key(key.key_id, algorithm) == (key, False)
    assert store.signing_key(key.key_id) == key


def test_a_key_of_many_simultaneous_calls_is_made_once(store: KeyStore) -> None:
    key_id = new_id()
    with ThreadPoolExecutor(16) as pool:
        answers = list(
            pool.map(
                lambda _: store.generate_signing_key(key_id, KeyAlgorithm.ECDSA_P256), range(16)
            )
        )
    assert [created for _, created in answers].count(True) == 1
    assert len({key.public_key for key, _ in answers}) == 1


@pytest.mark.parametrize(
    ("algorithm", "signature_algorithm"),
    _FITTING,
    ids=[f"{key.value}, {signature.value}" for key, signature in _FITTING],
)
def test_a_signature_verifies_and_its_tampered_twins_do_not(
    store: KeyStore,
    resident: dict[KeyAlgorithm, SigningKey],
    algorithm: KeyAlgorithm,
    signature_algorithm: SignatureAlgorithm,
) -> None:
    key = resident[algorithm]
    digest = hashlib.new(_HASHES[signature_algorithm].name, b"message").digest()
    signature = store.sign(key.key_id, signature_algorithm, digest)
    verify(key, signature_algorithm, digest, signature)
    with pytest.raises(InvalidSignature):
        verify(key, signature_algorithm, flipped(digest), signature)
    with pytest.raises(InvalidSignature):
        verify(key, signature_algorithm, digest, flipped(signature, -1))


@pytest.mark.parametrize("algorithm", KeyAlgorithm)
def test_a_signature_does_not_verify_under_another_key(
    store: KeyStore, resident: dict[KeyAlgorithm, SigningKey], algorithm: KeyAlgorithm
) -> None:
    other, _ = store.generate_signing_key(new_id(), KeyAlgorithm.ECDSA_P256)
    digest = hashlib.sha256(b"message").digest()
    signature = store.sign(other.key_id, SignatureAlgorithm.ECDSA_SHA256, digest)
    fitting = (
        SignatureAlgorithm.RSA_PKCS1_SHA256 if algorithm.is_rsa else SignatureAlgorithm.ECDSA_SHA256
    )
    with pytest.raises(InvalidSignature):
        verify(resident[algorithm], fitting, digest, signature)


@pytest.mark.parametrize("algorithm", KeyAlgorithm)
def test_a_signature_of_the_other_kind_is_refused_and_the_store_stays_usable(
    store: KeyStore, resident: dict[KeyAlgorithm, SigningKey], algorithm: KeyAlgorithm
) -> None:
    misfit, fit = SignatureAlgorithm.ECDSA_SHA256, SignatureAlgorithm.RSA_PKCS1_SHA256
    if not algorithm.is_rsa:
        misfit, fit = fit, misfit
    with pytest.raises(ConflictError, match="cannot make"):
        store.sign(resident[algorithm].key_id, misfit, b"d" * 32)
    assert store.sign(resident[algorithm].key_id, fit, b"d" * 32)


def test_an_id_of_another_algorithm_is_a_conflict_and_the_key_is_left_alone(
    store: KeyStore, resident: dict[KeyAlgorithm, SigningKey]
) -> None:
    key = resident[KeyAlgorithm.ECDSA_P256]
    with pytest.raises(ConflictError, match="exists as ecdsa-p256, not rsa-2048"):
        store.generate_signing_key(key.key_id, KeyAlgorithm.RSA_2048)
    assert store.signing_key(key.key_id) == key


def test_an_unknown_signing_key_is_not_found(store: KeyStore) -> None:
    with pytest.raises(KeyNotFoundError):
        store.signing_key(new_id("missing"))
    with pytest.raises(KeyNotFoundError):
        store.sign(new_id("missing"), SignatureAlgorithm.ECDSA_SHA256, b"d" * 32)


def test_a_kek_and_a_signing_key_may_share_an_id(store: KeyStore) -> None:
    shared = new_id("shared")
    assert store.generate_kek(shared)
    key, created = store.generate_signing_key(shared, KeyAlgorithm.ECDSA_P256)
    assert created
    assert store.unwrap(shared, store.wrap(shared, b"plaintext", b""), b"") == b"plaintext"
    digest = hashlib.sha256(b"message").digest()
    signature = store.sign(shared, SignatureAlgorithm.ECDSA_SHA256, digest)
    verify(key, SignatureAlgorithm.ECDSA_SHA256, digest, signature)


# -- roots ---------------------------------------------------------------------------------


def trusted(name: str, ca_id: bytes | None = None) -> TrustedRoot:
    root = pki.root(name)
    return TrustedRoot(
        ca_id=ca_id or new_id("root"),
        subject=root.certificate.subject.public_bytes(),
        certificate=root.der,
    )


def test_a_root_is_stored_once_and_read_back_whole(store: KeyStore) -> None:
    root = trusted("Stored Root")
    assert store.add_root(root)
    assert not store.add_root(root)
    assert [entry for entry in store.roots() if entry.ca_id == root.ca_id] == [root]


def test_several_roots_are_kept(store: KeyStore) -> None:
    first, second = trusted("First Root"), trusted("Second Root")
    store.add_root(first)
    store.add_root(second)
    kept = store.roots()
    assert first in kept
    assert second in kept


def test_another_root_under_the_same_id_is_a_conflict_and_the_first_one_stays(
    store: KeyStore,
) -> None:
    first = trusted("First Root")
    store.add_root(first)
    with pytest.raises(ConflictError, match="another root certificate"):
        store.add_root(trusted("Impostor", first.ca_id))
    assert [entry for entry in store.roots() if entry.ca_id == first.ca_id] == [first]


def test_a_root_of_many_simultaneous_calls_is_stored_once(store: KeyStore) -> None:
    root = trusted("Popular Root")
    with ThreadPoolExecutor(16) as pool:
        stored = list(pool.map(store.add_root, [root] * 16))
    assert stored.count(True) == 1
    assert store.roots().count(root) == 1


# -- threads and restarts ------------------------------------------------------------------


def test_many_threads_at_once_get_right_answers_only(store: KeyStore, kek: bytes) -> None:
    key, _ = store.generate_signing_key(new_id(), KeyAlgorithm.ECDSA_P256)

    def work(number: int) -> None:
        message = b"message %d" % number
        sealed = store.wrap(kek, message, message)
        assert store.unwrap(kek, sealed, message) == message
        with pytest.raises(RejectedBlobError):
            store.unwrap(kek, sealed, b"other")
        digest = hashlib.sha256(message).digest()
        signature = store.sign(key.key_id, SignatureAlgorithm.ECDSA_SHA256, digest)
        verify(key, SignatureAlgorithm.ECDSA_SHA256, digest, signature)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(200)))


def test_keys_and_roots_are_there_after_a_restart(session: Session) -> None:
    store = session.store
    kek_id, root = new_id("kek"), trusted("Lasting Root")
    store.generate_kek(kek_id)
    sealed = store.wrap(kek_id, b"plaintext", b"aad")
    key, _ = store.generate_signing_key(new_id(), KeyAlgorithm.ECDSA_P384)
    store.add_root(root)

    store = session.reopen()

    assert store.unwrap(kek_id, sealed, b"aad") == b"plaintext"
    assert not store.generate_kek(kek_id)
    assert store.signing_key(key.key_id) == key
    assert root in store.roots()
    digest = hashlib.sha384(b"message").digest()
    signature = store.sign(key.key_id, SignatureAlgorithm.ECDSA_SHA384, digest)
    verify(key, SignatureAlgorithm.ECDSA_SHA384, digest, signature)
