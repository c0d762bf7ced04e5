"""RSA-PSS, P-521 and Ed25519 over the socket, and tokens that do not offer them."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from pkcs11 import Attribute, ObjectClass

from istio_hsm_proto import signing_v1_pb2 as pb
from istio_hsm_proto.signing_v1_pb2_grpc import SigningServiceStub
from tests.support import plugin as plugins
from tests.support import token_view
from tests.support.softhsm import SoftHsm

MESSAGE = b"what is signed"
CASES: list[tuple[str, int, int, hashes.HashAlgorithm | None]] = [
    ("pss-256", pb.RSA_2048, pb.RSA_PSS_SHA256, hashes.SHA256()),
    ("pss-384", pb.RSA_3072, pb.RSA_PSS_SHA384, hashes.SHA384()),
    ("pss-512", pb.RSA_2048, pb.RSA_PSS_SHA512, hashes.SHA512()),
    ("p521", pb.ECDSA_P521, pb.ECDSA_SHA512, hashes.SHA512()),
    ("p384-512", pb.ECDSA_P384, pb.ECDSA_SHA512, hashes.SHA512()),
    ("ed25519", pb.ED25519, pb.EDDSA_ED25519, None),
]


def made(stub: SigningServiceStub, name: str, algorithm: int) -> pb.SigningKey:
    request = pb.GenerateSigningKeyRequest(key_id=name.encode(), algorithm=algorithm)  # type: ignore[arg-type] # enum values are ints
    return stub.GenerateSigningKey(request).key


def request_for(name: str, algorithm: int, data: bytes) -> pb.SignRequest:
    return pb.SignRequest(key_id=name.encode(), algorithm=algorithm, digest=data)  # type: ignore[arg-type] # as above


def verifies(
    key: pb.SigningKey, hashed: hashes.HashAlgorithm | None, signature: bytes, message: bytes
) -> bool:
    public = serialization.load_der_public_key(key.public_key)
    try:
        if hashed is None:
            assert isinstance(public, ed25519.Ed25519PublicKey)
            public.verify(signature, message)
        elif isinstance(public, rsa.RSAPublicKey):
            scheme = padding.PSS(padding.MGF1(hashed), salt_length=hashed.digest_size)
            public.verify(signature, message, scheme, hashed)
        else:
            assert isinstance(public, ec.EllipticCurvePublicKey)
            public.verify(signature, message, ec.ECDSA(hashed))
    except InvalidSignature:
        return False
    return True


def refused(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details() or ""


@pytest.mark.parametrize(
    ("name", "key_algorithm", "algorithm", "hashed"), CASES, ids=[case[0] for case in CASES]
)
def test_a_signature_verifies_for_its_message_alone(
    signing: SigningServiceStub,
    name: str,
    key_algorithm: int,
    algorithm: int,
    hashed: hashes.HashAlgorithm | None,
) -> None:
    key = made(signing, name, key_algorithm)
    assert key.algorithm == key_algorithm
    data = hashlib.new(hashed.name, MESSAGE).digest() if hashed else MESSAGE
    signature = signing.Sign(request_for(name, algorithm, data)).signature
    assert verifies(key, hashed, signature, MESSAGE)
    assert not verifies(key, hashed, signature, MESSAGE + b"!")
    assert not verifies(key, hashed, signature[:-1] + bytes([signature[-1] ^ 1]), MESSAGE)


@pytest.mark.parametrize(
    ("name", "algorithm"), [("hidden-p521", pb.ECDSA_P521), ("hidden-ed25519", pb.ED25519)]
)
def test_such_a_key_never_leaves_the_token(
    signing: SigningServiceStub, shared_hsm: SoftHsm, name: str, algorithm: int
) -> None:
    made(signing, name, algorithm)
    with token_view.viewed(shared_hsm) as view:
        private = view.the(ObjectClass.PRIVATE_KEY, name.encode())
        for attribute in ("PRIVATE", "SENSITIVE", "NEVER_EXTRACTABLE"):
            assert private[Attribute[attribute]] is True, attribute
        assert private[Attribute.EXTRACTABLE] is False


def test_a_message_for_ed25519_has_at_most_64_kib_alone_and_in_a_batch(
    signing: SigningServiceStub,
) -> None:
    key = made(signing, "long-messages", pb.ED25519)
    largest = b"m" * (64 << 10)
    signature = signing.Sign(request_for("long-messages", pb.EDDSA_ED25519, largest)).signature
    assert verifies(key, None, signature, largest)
    too_much = request_for("long-messages", pb.EDDSA_ED25519, largest + b"m")
    code, details = refused(lambda: signing.Sign(too_much))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "more than 65536" in details
    halves = pb.SignBatchRequest(
        key_id=b"long-messages",
        algorithm=pb.EDDSA_ED25519,
        digests=[largest[: 32 << 10]] * 3,
    )
    assert refused(lambda: signing.SignBatch(halves))[0] is grpc.StatusCode.INVALID_ARGUMENT
    del halves.digests[2]
    for signature in signing.SignBatch(halves).signatures:
        assert verifies(key, None, signature, largest[: 32 << 10])


def test_a_key_of_another_kind_is_refused(signing: SigningServiceStub) -> None:
    made(signing, "ed25519", pb.ED25519)
    code, details = refused(
        lambda: signing.Sign(request_for("ed25519", pb.ECDSA_SHA256, bytes(32)))
    )
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "cannot make ecdsa-sha256" in details


def test_what_the_token_does_not_offer_is_unimplemented_by_name_and_the_rest_works(
    hsm: SoftHsm, folder: Path
) -> None:
    with hsm.config.open("a") as config:
        config.write("slots.mechanisms = -CKM_EDDSA,CKM_EC_EDWARDS_KEY_PAIR_GEN,CKM_RSA_PKCS_PSS\n")
    with plugins.running(hsm, folder) as plugin, plugin.signing() as stub:
        code, details = refused(lambda: made(stub, "ed", pb.ED25519))
        assert code is grpc.StatusCode.UNIMPLEMENTED
        assert "CKM_EC_EDWARDS_KEY_PAIR_GEN, which a key of ed25519 needs" in details
        made(stub, "rsa", pb.RSA_2048)
        pss = request_for("rsa", pb.RSA_PSS_SHA256, bytes(32))
        code, details = refused(lambda: stub.Sign(pss))
        assert code is grpc.StatusCode.UNIMPLEMENTED
        assert "CKM_RSA_PKCS_PSS, which a signature of rsa-pss-sha256 needs" in details
        assert stub.Sign(request_for("rsa", pb.RSA_PKCS1_SHA256, bytes(32))).signature
        assert plugin.health() == plugins.SERVING
