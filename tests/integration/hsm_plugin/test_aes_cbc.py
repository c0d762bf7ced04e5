"""`serve --algorithm aes-cbc`: in the place of the reference, and beside AES-GCM."""

import base64
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from istio_hsm_proto import kms_istio_v1_pb2 as kms
from istio_hsm_proto import kms_kubernetes_v2_pb2 as v2
from istio_hsm_proto.kms_kubernetes_v2_pb2_grpc import KeyManagementServiceStub as V2Stub
from tests.support import plugin as plugins
from tests.support import softhsm
from tests.support.cbc_reference import ReferenceKeys
from tests.support.faults import Ckr, FaultyHsm, make_faulty
from tests.support.plugin import Plugin

KEYS = ReferenceKeys(b"7651a4ea-eeb7-4c1f-927b-8c871c2127aa")
CBC = ("--algorithm", "aes-cbc")


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> FaultyHsm:
    """The reference's token, whose module's calls are counted."""
    hsm = softhsm.make_token(tmp_path_factory.mktemp("cbc"))
    KEYS.put_into(hsm)
    return make_faulty(hsm)


@pytest.fixture(scope="module")
def cbc(token: FaultyHsm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plugin]:
    with plugins.running(
        token.hsm,
        tmp_path_factory.mktemp("run"),
        arguments=[*CBC, "--kms-kek-id", KEYS.kek_id.decode()],
        environment=token.environment(),
    ) as plugin:
        yield plugin


def dek_of(plugin: Plugin, kek_id: bytes) -> bytes:
    with plugin.keys() as stub:
        stub.GenerateKEK(kms.GenerateKEKRequest(kek_kid=kek_id))
        return stub.GenerateDEK(kms.GenerateDEKRequest(kek_kid=kek_id)).encrypted_dek_blob


def round_trip(plugin: Plugin, kek_id: bytes, dek: bytes) -> bytes:
    with plugin.keys() as stub:
        sealed = stub.AuthenticatedEncrypt(
            kms.AuthenticatedEncryptRequest(
                kek_kid=kek_id, encrypted_dek_blob=dek, plaintext=b"csr", aad=b"id"
            )
        )
        return stub.AuthenticatedDecrypt(
            kms.AuthenticatedDecryptRequest(
                kek_kid=kek_id, encrypted_dek_blob=dek, ciphertext=sealed.ciphertext, aad=b"id"
            )
        ).plaintext


def refusal(call: object, request: object) -> str:
    assert callable(call)
    with pytest.raises(grpc.RpcError) as caught:
        call(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    return caught.value.details() or ""


@pytest.mark.parametrize("size", [1, 15, 16, 17, 32, 48])
def test_what_the_reference_encrypted_for_kubernetes_decrypts(cbc: Plugin, size: int) -> None:
    plaintext = b"p" * size
    with cbc.channel() as channel:
        request = v2.DecryptRequest(ciphertext=KEYS.seal(plaintext), key_id=KEYS.kek_id.hex())
        assert V2Stub(channel).Decrypt(request).plaintext == plaintext


def test_what_is_encrypted_for_kubernetes_the_reference_decrypts(cbc: Plugin) -> None:
    with cbc.channel() as channel:
        stub = V2Stub(channel)
        assert stub.Status(v2.StatusRequest()).healthz == "ok"
        sealed = stub.Encrypt(v2.EncryptRequest(plaintext=b"s" * 33))
        header, plaintext = KEYS.open(sealed.ciphertext)
        assert plaintext == b"s" * 33
        assert list(header) == ["alg", "kid", "typ", "cty", "_thales_aad", "enc"]
        assert header["kid"] == KEYS.kek_id.hex()
        request = v2.DecryptRequest(ciphertext=sealed.ciphertext, key_id=sealed.key_id)
        assert stub.Decrypt(request).plaintext == b"s" * 33


def test_a_changed_blob_is_refused_before_anything_is_decrypted(
    cbc: Plugin, token: FaultyHsm
) -> None:
    blob = KEYS.seal(b"p" * 20)
    flip = {ord("A"): b"B"}
    with cbc.channel() as channel:
        before = token.calls("C_DecryptInit")
        for part in (2, 3, 4):
            parts = blob.split(b".")
            parts[part] = flip.get(parts[part][0], b"A") + parts[part][1:]
            request = v2.DecryptRequest(ciphertext=b".".join(parts), key_id=KEYS.kek_id.hex())
            assert "does not authenticate" in refusal(V2Stub(channel).Decrypt, request)
        assert token.calls("C_DecryptInit") == before


def test_deks_of_the_mesh_and_of_kubernetes_do_not_pass_for_each_other(cbc: Plugin) -> None:
    dek = dek_of(cbc, KEYS.kek_id)
    assert round_trip(cbc, KEYS.kek_id, dek) == b"csr"
    with cbc.channel() as channel, cbc.keys() as stub:
        request = v2.DecryptRequest(ciphertext=dek, key_id=KEYS.kek_id.hex())
        assert "not made for Kubernetes" in refusal(V2Stub(channel).Decrypt, request)
        load = kms.LoadSKeyRequest(
            kek_kid=KEYS.kek_id, encrypted_dek_blob=KEYS.seal(b"p"), encrypted_skey_blob=b"x"
        )
        assert "not made for a DEK" in refusal(stub.LoadSKey, load)


def test_another_kek_than_the_one_that_wrapped_is_refused(cbc: Plugin) -> None:
    dek = dek_of(cbc, b"one")
    dek_of(cbc, b"two")
    with cbc.keys() as stub:
        load = kms.LoadSKeyRequest(kek_kid=b"two", encrypted_dek_blob=dek, encrypted_skey_blob=b"x")
        assert "another KEK than the one named" in refusal(stub.LoadSKey, load)


def test_a_dek_that_aes_cbc_wrapped_is_opened_whatever_wraps_now(tmp_path: Path) -> None:
    hsm = make_faulty(softhsm.make_token(tmp_path / "token"))
    with plugins.running(
        hsm.hsm, tmp_path / "run", arguments=CBC, environment=hsm.environment()
    ) as plugin:
        dek = dek_of(plugin, b"kek")
        assert dek.startswith(base64.urlsafe_b64encode(b'{"alg":"A256CBC","kid":')[:-2])
        assert round_trip(plugin, b"kek", dek) == b"csr"
    with plugins.running(hsm.hsm, tmp_path / "run", environment=hsm.environment()) as plugin:
        hsm.refuse(Ckr.GENERAL_ERROR, "C_SignInit", times=1)
        assert dek_of(plugin, b"kek") != dek
        assert round_trip(plugin, b"kek", dek) == b"csr"
