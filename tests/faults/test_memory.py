"""What is remembered of the token saves calls, and is not used once the token is gone."""

import grpc
import pytest

from istio_hsm_proto import kms_istio_v1_pb2 as kms
from istio_hsm_proto.kms_istio_v1_pb2_grpc import KeyManagementServiceStub
from tests.faults.clients import status_of
from tests.support import pki
from tests.support.faults import ON_THE_TOKEN, Ckr, FaultyHsm
from tests.support.plugin import NOT_SERVING, SERVING, Plugin

KEK = b"remembered"


def wrapped_dek(keys: KeyManagementServiceStub) -> bytes:
    keys.GenerateKEK(kms.GenerateKEKRequest(kek_kid=KEK))
    return keys.GenerateDEK(kms.GenerateDEKRequest(kek_kid=KEK)).encrypted_dek_blob


def encrypt(keys: KeyManagementServiceStub, dek: bytes) -> bytes:
    return keys.AuthenticatedEncrypt(
        kms.AuthenticatedEncryptRequest(kek_kid=KEK, encrypted_dek_blob=dek, plaintext=b"plain")
    ).ciphertext


def decrypt(keys: KeyManagementServiceStub, dek: bytes, ciphertext: bytes) -> bytes:
    return keys.AuthenticatedDecrypt(
        kms.AuthenticatedDecryptRequest(kek_kid=KEK, encrypted_dek_blob=dek, ciphertext=ciphertext)
    ).plaintext


def test_a_known_dek_and_known_roots_cost_no_call_of_the_token(
    plugin: Plugin, hsm: FaultyHsm
) -> None:
    root = pki.root("Remembered Root")
    chain = kms.VerifyCertChainRequest(certificates=[root.der])
    with plugin.keys() as keys:
        dek = wrapped_dek(keys)
        ciphertext = encrypt(keys, dek)
        keys.ImportCACert(kms.ImportCACertRequest(ca_cert_blob=root.der))
        keys.VerifyCertChain(chain)
        before = hsm.calls("C_Decrypt"), hsm.calls("C_FindObjects")
        for _ in range(10):
            assert decrypt(keys, dek, encrypt(keys, dek)) == b"plain"
            assert decrypt(keys, dek, ciphertext) == b"plain"
            assert keys.VerifyCertChain(chain).successful_verification
        assert (hsm.calls("C_Decrypt"), hsm.calls("C_FindObjects")) == before


def test_a_changed_blob_is_refused_although_the_right_one_is_known(plugin: Plugin) -> None:
    with plugin.keys() as keys:
        dek = wrapped_dek(keys)
        assert encrypt(keys, dek)
        head, _, tail = dek.rpartition(b".")
        changed = head + b"." + (b"A" if tail[:1] != b"A" else b"B") + tail[1:]
        with pytest.raises(grpc.RpcError) as caught:
            encrypt(keys, changed)
        assert status_of(caught.value).code() is grpc.StatusCode.INVALID_ARGUMENT
        keys.GenerateKEK(kms.GenerateKEKRequest(kek_kid=b"other"))
        with pytest.raises(grpc.RpcError) as caught:
            keys.AuthenticatedEncrypt(
                kms.AuthenticatedEncryptRequest(kek_kid=b"other", encrypted_dek_blob=dek)
            )
        assert status_of(caught.value).code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_known_dek_is_of_no_use_once_the_token_is_gone(plugin: Plugin, hsm: FaultyHsm) -> None:
    with plugin.keys() as keys:
        dek = wrapped_dek(keys)
        ciphertext = encrypt(keys, dek)
        hsm.refuse(Ckr.TOKEN_NOT_PRESENT, *ON_THE_TOKEN)
        with pytest.raises(grpc.RpcError):  # notices that the token is gone
            keys.GenerateDEK(kms.GenerateDEKRequest(kek_kid=KEK))
        plugin.await_health(NOT_SERVING)
        with pytest.raises(grpc.RpcError) as caught:
            decrypt(keys, dek, ciphertext)
        assert status_of(caught.value).code() is grpc.StatusCode.UNAVAILABLE
        hsm.heal()
        plugin.await_health(SERVING)
        assert decrypt(keys, dek, ciphertext) == b"plain"


def test_an_imported_root_counts_at_once(plugin: Plugin) -> None:
    first, second = pki.root("First Root"), pki.root("Second Root")
    with plugin.keys() as keys:
        keys.ImportCACert(kms.ImportCACertRequest(ca_cert_blob=first.der))
        with pytest.raises(grpc.RpcError):
            keys.VerifyCertChain(kms.VerifyCertChainRequest(certificates=[second.der]))
        keys.ImportCACert(kms.ImportCACertRequest(ca_cert_blob=second.der))
        response = keys.VerifyCertChain(kms.VerifyCertChainRequest(certificates=[second.der]))
    assert response.successful_verification
