"""Batches, the list of signing keys, and their destruction, over the socket."""

import hashlib
import json
from collections.abc import Callable, Iterator

import grpc
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from pkcs11 import ObjectClass

from istio_hsm_proto import signing_v1_pb2 as pb
from istio_hsm_proto.signing_v1_pb2_grpc import SigningServiceStub
from tests.support import plugin as plugins
from tests.support import token_view
from tests.support.plugin import Plugin
from tests.support.softhsm import SoftHsm

DIGESTS = [hashlib.sha256(b"message %d" % number).digest() for number in range(256)]


@pytest.fixture
def key(signing: SigningServiceStub) -> Iterator[pb.SigningKey]:
    """A key of the test's own, destroyed at its end when it is still there."""
    made = signing.GenerateSigningKey(pb.GenerateSigningKeyRequest(algorithm=pb.ECDSA_P256)).key
    yield made
    if made.key_id in {entry.key.key_id for entry in listed(signing)}:
        signing.DestroyKey(destruction(made))


def listed(signing: SigningServiceStub) -> list[pb.ListedKey]:
    return list(signing.ListKeys(pb.ListKeysRequest()).keys)


def batch(key: pb.SigningKey, digests: list[bytes]) -> pb.SignBatchRequest:
    return pb.SignBatchRequest(key_id=key.key_id, algorithm=pb.ECDSA_SHA256, digests=digests)


def destruction(key: pb.SigningKey) -> pb.DestroyKeyRequest:
    return pb.DestroyKeyRequest(
        key_id=key.key_id,
        confirm_key_id=key.key_id,
        confirm_public_key_sha256=hashlib.sha256(key.public_key).digest(),
    )


def refused(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details() or ""


@pytest.mark.parametrize("count", [1, 7, 8, 9, 256])
def test_a_batch_of_any_size_is_signed_in_its_order(
    signing: SigningServiceStub, key: pb.SigningKey, count: int
) -> None:
    public = serialization.load_der_public_key(key.public_key)
    assert isinstance(public, ec.EllipticCurvePublicKey)
    scheme = ec.ECDSA(Prehashed(hashes.SHA256()))
    signatures = signing.SignBatch(batch(key, DIGESTS[:count])).signatures
    assert len(signatures) == count
    for digest, signature in zip(DIGESTS, signatures, strict=False):
        public.verify(signature, digest, scheme)
    if count > 1:
        with pytest.raises(InvalidSignature):
            public.verify(signatures[0], DIGESTS[1], scheme)


@pytest.mark.parametrize(
    ("digests", "words"),
    [
        ([], "the batch has 0 digests"),
        (DIGESTS + DIGESTS[:1], "the batch has 257 digests"),
        ([*DIGESTS[:3], b"short"], "the digest has 5 bytes instead of 32"),
    ],
    ids=["empty", "too many", "one short digest"],
)
def test_a_batch_with_a_fault_is_refused_whole(
    signing: SigningServiceStub, key: pb.SigningKey, digests: list[bytes], words: str
) -> None:
    code, details = refused(lambda: signing.SignBatch(batch(key, digests)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert words in details


def test_a_batch_of_an_unknown_key_is_not_found(signing: SigningServiceStub) -> None:
    missing = pb.SigningKey(key_id=b"no-such-key")
    code, _ = refused(lambda: signing.SignBatch(batch(missing, DIGESTS)))
    assert code is grpc.StatusCode.NOT_FOUND


def test_a_key_is_listed_as_get_public_key_answers_it(
    signing: SigningServiceStub, key: pb.SigningKey
) -> None:
    answer = signing.GetPublicKey(pb.GetPublicKeyRequest(key_id=key.key_id))
    [entry] = [entry for entry in listed(signing) if entry.key.key_id == key.key_id]
    assert entry == pb.ListedKey(key=answer.key)


def test_a_key_of_which_two_exist_is_listed_with_its_fault(
    signing: SigningServiceStub, key: pb.SigningKey, shared_hsm: SoftHsm
) -> None:
    with token_view.viewed(shared_hsm) as view:
        copy = view.the(ObjectClass.PUBLIC_KEY, key.key_id).copy({})
        [entry] = [entry for entry in listed(signing) if entry.key.key_id == key.key_id]
        copy.destroy()
    assert "2 objects" in entry.fault
    assert not entry.key.public_key


def test_a_confirmed_destruction_leaves_nothing_of_the_key(
    signing: SigningServiceStub, key: pb.SigningKey, shared_hsm: SoftHsm, plugin: Plugin
) -> None:
    signing.SignBatch(batch(key, DIGESTS))
    signing.DestroyKey(destruction(key))
    assert refused(lambda: signing.SignBatch(batch(key, DIGESTS)))[0] is grpc.StatusCode.NOT_FOUND
    assert refused(lambda: signing.DestroyKey(destruction(key)))[0] is grpc.StatusCode.NOT_FOUND
    with token_view.viewed(shared_hsm) as view:
        for kind in (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY):
            assert view.objects(kind, key.key_id) == []
    assert any(
        key.key_id.decode() in str(entry["message"]) for entry in plugin.events("key.destroyed")
    )


def test_what_an_interrupted_destruction_left_is_destroyed_by_the_next_call(
    signing: SigningServiceStub, key: pb.SigningKey, shared_hsm: SoftHsm
) -> None:
    with token_view.viewed(shared_hsm) as view:
        view.the(ObjectClass.PRIVATE_KEY, key.key_id).destroy()
    signing.DestroyKey(destruction(key))
    with token_view.viewed(shared_hsm) as view:
        assert view.objects(ObjectClass.PUBLIC_KEY, key.key_id) == []


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"confirm_key_id": b""}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"confirm_key_id": b"another"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"confirm_public_key_sha256": b""}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"confirm_public_key_sha256": bytes(32)}, grpc.StatusCode.FAILED_PRECONDITION),
    ],
    ids=["no id again", "another id", "no fingerprint", "another fingerprint"],
)
def test_a_destruction_without_its_confirmation_is_refused_and_the_key_stays(
    signing: SigningServiceStub,
    key: pb.SigningKey,
    changes: dict[str, bytes],
    code: grpc.StatusCode,
) -> None:
    request = destruction(key)
    for name, value in changes.items():
        setattr(request, name, value)
    assert refused(lambda: signing.DestroyKey(request))[0] is code
    assert signing.SignBatch(batch(key, DIGESTS[:1])).signatures


def test_list_keys_prints_each_key_and_its_fingerprint(plugin: Plugin, key: pb.SigningKey) -> None:
    fingerprint = hashlib.sha256(key.public_key).hexdigest()
    environment = {"SOCKET": str(plugin.socket)}
    text = plugins.command(["list-keys"], environment=environment)
    assert text.returncode == 0
    assert f"{key.key_id.decode()}  ECDSA_P256  public key SHA-256 {fingerprint}" in text.stdout
    as_json = plugins.command(["list-keys", "--output", "json"], environment=environment)
    assert {
        "key_id": key.key_id.decode(),
        "algorithm": "ECDSA_P256",
        "public_key_sha256": fingerprint,
    } in json.loads(as_json.stdout)["keys"]


def test_list_keys_without_a_plugin_fails(plugin: Plugin) -> None:
    socket = plugin.socket.with_name("nobody")
    outcome = plugins.command(["list-keys"], environment={"SOCKET": str(socket)})
    assert outcome.returncode == 1
    assert "no plugin answers" in outcome.stderr
