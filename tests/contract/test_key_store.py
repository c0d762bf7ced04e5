"""What every KeyStore does, on a real token."""

import hashlib
import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from hsm_plugin.errors import ConflictError, KeyNotFoundError, RejectedBlobError
from hsm_plugin.keys import (
    KeyAlgorithm,
    KeyKind,
    KeyStore,
    ListedKey,
    Sealed,
    SignatureAlgorithm,
    SigningKey,
    TrustedRoot,
)
from tests.contract.conftest import Session
from tests.support import pki

_HASHES: dict[int, hashes.HashAlgorithm] = {
    32: hashes.SHA256(),
    48: hashes.SHA384(),
    64: hashes.SHA512(),
}
_FITTING = [
    (key, signature)
    for key, signature in itertools.product(KeyAlgorithm, SignatureAlgorithm)
    if key.kind is signature.kind
]
_ONE_OF_A_KIND = {
    KeyKind.RSA: SignatureAlgorithm.RSA_PKCS1_SHA256,
    KeyKind.EC: SignatureAlgorithm.ECDSA_SHA256,
    KeyKind.EDWARDS: SignatureAlgorithm.EDDSA_ED25519,
}
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
    if algorithm.digest_bytes is None or isinstance(public, ed25519.Ed25519PublicKey):
        assert isinstance(public, ed25519.Ed25519PublicKey)
        public.verify(signature, digest)
        return
    hashed = _HASHES[algorithm.digest_bytes]
    match public:
        case rsa.RSAPublicKey() if algorithm.is_pss:
            scheme = padding.PSS(padding.MGF1(hashed), salt_length=hashed.digest_size)
            public.verify(signature, digest, scheme, Prehashed(hashed))
        case rsa.RSAPublicKey():
            public.verify(signature, digest, padding.PKCS1v15(), Prehashed(hashed))
        case ec.EllipticCurvePublicKey():
            public.verify(signature, digest, ec.ECDSA(Prehashed(hashed)))
        case _:
            pytest.fail("a key of no kind that is known")


def message_for(algorithm: SignatureAlgorithm) -> bytes:
    """Return what is signed: a digest, or a message where the algorithm takes one."""
    return b"m" * 1000 if algorithm.digest_bytes is None else b"d" * algorithm.digest_bytes


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
            bits = algorithm.value.removeprefix("ecdsa-p")
            assert public.curve.name == f"secp{bits}r1"
        case _:
            assert isinstance(public, ed25519.Ed25519PublicKey)
            assert algorithm is KeyAlgorithm.ED25519


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
    digest = message_for(signature_algorithm)
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
    fitting = _ONE_OF_A_KIND[algorithm.kind]
    with pytest.raises(InvalidSignature):
        verify(resident[algorithm], fitting, digest, signature)


@pytest.mark.parametrize("algorithm", KeyAlgorithm)
def test_a_signature_of_the_other_kind_is_refused_and_the_store_stays_usable(
    store: KeyStore, resident: dict[KeyAlgorithm, SigningKey], algorithm: KeyAlgorithm
) -> None:
    for kind, signature in _ONE_OF_A_KIND.items():
        if kind is not algorithm.kind:
            with pytest.raises(ConflictError, match="cannot make"):
                store.sign(resident[algorithm].key_id, signature, message_for(signature))
    assert store.sign(resident[algorithm].key_id, _ONE_OF_A_KIND[algorithm.kind], b"d" * 32)


@pytest.mark.parametrize("message", [b"", b"x", bytes(64 << 10)], ids=["empty", "short", "long"])
def test_ed25519_signs_messages_of_every_length(
    store: KeyStore, resident: dict[KeyAlgorithm, SigningKey], message: bytes
) -> None:
    key, algorithm = resident[KeyAlgorithm.ED25519], SignatureAlgorithm.EDDSA_ED25519
    signature = store.sign(key.key_id, algorithm, message)
    verify(key, algorithm, message, signature)
    with pytest.raises(InvalidSignature):
        verify(key, algorithm, message + b"!", signature)


def test_two_pss_signatures_of_one_digest_differ(
    store: KeyStore, resident: dict[KeyAlgorithm, SigningKey]
) -> None:
    key_id = resident[KeyAlgorithm.RSA_2048].key_id
    digest = [b"d" * 32]
    first, second = store.sign_batch(key_id, SignatureAlgorithm.RSA_PSS_SHA256, digest * 2)
    assert first != second


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


# -- batches, listing, destruction ---------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 256])
def test_a_batch_is_signed_in_its_order(
    store: KeyStore, resident: dict[KeyAlgorithm, SigningKey], count: int
) -> None:
    key, algorithm = resident[KeyAlgorithm.ECDSA_P256], SignatureAlgorithm.ECDSA_SHA256
    digests = [hashlib.sha256(b"message %d" % number).digest() for number in range(count)]
    signatures = store.sign_batch(key.key_id, algorithm, digests)
    assert len(signatures) == count
    for digest, signature in zip(digests, signatures, strict=True):
        verify(key, algorithm, digest, signature)
        with pytest.raises(InvalidSignature):
            verify(key, algorithm, flipped(digest), signature)


def test_a_batch_of_rsa_signatures_is_that_of_single_ones(
    store: KeyStore, resident: dict[KeyAlgorithm, SigningKey]
) -> None:
    key_id, algorithm = resident[KeyAlgorithm.RSA_2048].key_id, SignatureAlgorithm.RSA_PKCS1_SHA256
    digests = [bytes([number]) * 32 for number in range(3)]
    single = [store.sign(key_id, algorithm, digest) for digest in digests]
    assert store.sign_batch(key_id, algorithm, digests) == single


def test_a_batch_for_an_unknown_key_or_the_other_kind_is_refused(
    store: KeyStore, resident: dict[KeyAlgorithm, SigningKey]
) -> None:
    with pytest.raises(KeyNotFoundError):
        store.sign_batch(new_id("missing"), SignatureAlgorithm.ECDSA_SHA256, [b"d" * 32])
    with pytest.raises(ConflictError, match="cannot make"):
        store.sign_batch(
            resident[KeyAlgorithm.RSA_2048].key_id, SignatureAlgorithm.ECDSA_SHA256, [b"d" * 32]
        )


def test_every_signing_key_is_listed_and_no_other_object(
    store: KeyStore, kek: bytes, resident: dict[KeyAlgorithm, SigningKey]
) -> None:
    listed = store.signing_keys()
    found = {entry.key_id: entry for entry in listed}
    assert [entry.key_id for entry in listed] == sorted(found)
    for key in resident.values():
        assert found[key.key_id] == ListedKey(key.key_id, key)
    assert kek not in found


def public_sha256(key: SigningKey) -> bytes:
    return hashlib.sha256(key.public_key).digest()


def test_a_destroyed_key_is_gone_for_every_thread(store: KeyStore) -> None:
    key, _ = store.generate_signing_key(new_id(), KeyAlgorithm.ECDSA_P256)

    def sign(_: int) -> bytes:
        return store.sign(key.key_id, SignatureAlgorithm.ECDSA_SHA256, b"d" * 32)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(sign, range(32)))
        store.destroy_signing_key(key.key_id, public_sha256(key))
        failures = [future.exception() for future in [pool.submit(sign, 0) for _ in range(32)]]
    assert {type(failure) for failure in failures} == {KeyNotFoundError}
    assert key.key_id not in {entry.key_id for entry in store.signing_keys()}
    with pytest.raises(KeyNotFoundError):
        store.destroy_signing_key(key.key_id, public_sha256(key))


def test_a_key_is_not_destroyed_with_anothers_confirmation(
    store: KeyStore, resident: dict[KeyAlgorithm, SigningKey]
) -> None:
    key, other = resident[KeyAlgorithm.ECDSA_P256], resident[KeyAlgorithm.ECDSA_P384]
    for confirmation in (public_sha256(other), flipped(public_sha256(key)), b""):
        with pytest.raises(ConflictError, match="not destroyed"):
            store.destroy_signing_key(key.key_id, confirmation)
    assert store.sign(key.key_id, SignatureAlgorithm.ECDSA_SHA256, b"d" * 32)


def test_the_id_of_a_destroyed_key_may_be_used_again(store: KeyStore) -> None:
    first, _ = store.generate_signing_key(new_id(), KeyAlgorithm.ECDSA_P256)
    store.destroy_signing_key(first.key_id, public_sha256(first))
    second, created = store.generate_signing_key(first.key_id, KeyAlgorithm.ECDSA_P256)
    assert created
    digest = hashlib.sha256(b"message").digest()
    signature = store.sign(second.key_id, SignatureAlgorithm.ECDSA_SHA256, digest)
    verify(second, SignatureAlgorithm.ECDSA_SHA256, digest, signature)
    with pytest.raises(InvalidSignature):
        verify(first, SignatureAlgorithm.ECDSA_SHA256, digest, signature)


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
