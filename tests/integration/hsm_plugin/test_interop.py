"""Every blob of the reference opens over the socket, and what we write the reference can read."""

import base64
import json
from collections.abc import Iterator

import grpc
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from pkcs11 import ObjectClass

from hsm_plugin.envelope import parse
from istio_hsm_proto import kms_istio_v1_pb2 as kms
from istio_hsm_proto.kms_istio_v1_pb2_grpc import KeyManagementServiceStub
from tests.support import plugin as plugins
from tests.support import token_view, vectors
from tests.support.plugin import Plugin
from tests.support.softhsm import SoftHsm

REFERENCE = vectors.interop()


@pytest.fixture(scope="module")
def reference_hsm(tmp_path_factory: pytest.TempPathFactory) -> SoftHsm:
    return vectors.reference_token(tmp_path_factory.mktemp("reference"))


@pytest.fixture(scope="module")
def reference_plugin(
    reference_hsm: SoftHsm, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Plugin]:
    """Our plugin on the reference's token."""
    with plugins.running(reference_hsm, tmp_path_factory.mktemp("run")) as running:
        yield running


@pytest.fixture(scope="module")
def stub(reference_plugin: Plugin) -> Iterator[KeyManagementServiceStub]:
    with reference_plugin.keys() as stub:
        yield stub


@pytest.fixture(scope="module")
def our_dek_blob(stub: KeyManagementServiceStub) -> bytes:
    return stub.GenerateDEK(kms.GenerateDEKRequest(kek_kid=REFERENCE.kek_id)).encrypted_dek_blob


def header(blob: bytes) -> dict[str, str]:
    """Return the members of a JWE's header, in their order."""
    part = blob.split(b".")[0]
    members: dict[str, str] = json.loads(base64.urlsafe_b64decode(part + b"=" * (-len(part) % 4)))
    return members


# -- reading -------------------------------------------------------------------------------


def test_the_references_private_key_loads_as_the_same_pem(stub: KeyManagementServiceStub) -> None:
    response = stub.LoadSKey(
        kms.LoadSKeyRequest(
            kek_kid=REFERENCE.kek_id,
            encrypted_dek_blob=REFERENCE.dek_blob,
            encrypted_skey_blob=REFERENCE.skey_blob,
        )
    )
    assert response.plaintext_skey == REFERENCE.skey_pem


@pytest.mark.parametrize("index", range(3))
def test_the_references_ciphertexts_decrypt(stub: KeyManagementServiceStub, index: int) -> None:
    theirs = REFERENCE.ciphertexts[index]
    response = stub.AuthenticatedDecrypt(
        kms.AuthenticatedDecryptRequest(
            kek_kid=REFERENCE.kek_id,
            encrypted_dek_blob=REFERENCE.dek_blob,
            ciphertext=theirs.blob,
            aad=theirs.aad,
        )
    )
    assert response.plaintext == theirs.plaintext


@pytest.mark.parametrize("index", range(3))
def test_the_references_ciphertexts_do_not_decrypt_with_another_aad(
    stub: KeyManagementServiceStub, index: int
) -> None:
    theirs = REFERENCE.ciphertexts[index]
    with pytest.raises(grpc.RpcError) as caught:
        stub.AuthenticatedDecrypt(
            kms.AuthenticatedDecryptRequest(
                kek_kid=REFERENCE.kek_id,
                encrypted_dek_blob=REFERENCE.dek_blob,
                ciphertext=theirs.blob,
                aad=theirs.aad + b"!",
            )
        )
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_the_references_kek_is_found_by_generate_kek(
    stub: KeyManagementServiceStub, reference_hsm: SoftHsm
) -> None:
    response = stub.GenerateKEK(kms.GenerateKEKRequest(kek_kid=REFERENCE.kek_id))
    assert response.kek_kid == REFERENCE.kek_id
    with token_view.viewed(reference_hsm) as view:
        assert view.the(ObjectClass.SECRET_KEY, REFERENCE.kek_id)


# -- writing -------------------------------------------------------------------------------


def test_our_dek_blob_has_the_references_header_and_lengths(our_dek_blob: bytes) -> None:
    ours, theirs = parse(our_dek_blob, "ours"), parse(REFERENCE.dek_blob, "theirs")
    assert ours.protected == theirs.protected
    assert len(ours.sealed.iv) == len(theirs.sealed.iv) == 16
    assert len(our_dek_blob) == len(REFERENCE.dek_blob)


def test_our_dek_blob_opens_in_the_token_to_a_jwk_of_the_references_layout(
    our_dek_blob: bytes, reference_hsm: SoftHsm
) -> None:
    jwe = parse(our_dek_blob, "it")
    with token_view.viewed(reference_hsm) as view:
        jwk = view.decrypt(REFERENCE.kek_id, jwe.sealed, jwe.protected)
    ours, theirs = json.loads(jwk), json.loads(vectors.DEK_JWK)
    own = {"kid": theirs["kid"], "k": theirs["k"]}
    layout = jwk.decode().replace(ours["kid"], own["kid"]).replace(ours["k"], own["k"])
    assert layout.encode() == vectors.DEK_JWK
    assert ours["kid"] != own["kid"]
    assert ours["k"] != own["k"]


def test_our_private_key_blob_has_the_references_header_and_holds_a_pkcs1_pem(
    stub: KeyManagementServiceStub, our_dek_blob: bytes
) -> None:
    blob = stub.GenerateSKey(
        kms.GenerateSKeyRequest(
            size=2048, kind=kms.RSA, kek_kid=REFERENCE.kek_id, encrypted_dek_blob=our_dek_blob
        )
    ).encrypted_skey_blob
    assert list(header(blob)) == list(header(REFERENCE.skey_blob)) == ["alg", "kid", "enc"]
    assert len(parse(blob, "it").sealed.iv) == 12
    pem = stub.LoadSKey(
        kms.LoadSKeyRequest(
            kek_kid=REFERENCE.kek_id, encrypted_dek_blob=our_dek_blob, encrypted_skey_blob=blob
        )
    ).plaintext_skey
    assert pem.startswith(b"-----BEGIN RSA PRIVATE KEY-----\n")
    key = serialization.load_pem_private_key(pem, None)
    assert isinstance(key, rsa.RSAPrivateKey)
    assert (key.key_size, key.public_key().public_numbers().e) == (2048, 65537)


def test_our_ciphertext_under_the_references_dek_has_its_header_byte_for_byte(
    stub: KeyManagementServiceStub,
) -> None:
    theirs = REFERENCE.ciphertexts[0]
    blob = stub.AuthenticatedEncrypt(
        kms.AuthenticatedEncryptRequest(
            kek_kid=REFERENCE.kek_id,
            encrypted_dek_blob=REFERENCE.dek_blob,
            plaintext=theirs.plaintext,
            aad=theirs.aad,
        )
    ).ciphertext
    assert blob.split(b".")[0] == theirs.blob.split(b".")[0]
    assert header(blob)["_thales_aad"] == "Y2x1c3Rlci5sb2NhbA"
    assert len(blob) == len(theirs.blob)
    assert blob != theirs.blob
