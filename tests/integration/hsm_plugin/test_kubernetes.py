"""Kubernetes' KMS services on the socket: on request only, and through a rotation of the KEK."""

from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from istio_hsm_proto import kms_istio_v1_pb2 as mesh
from istio_hsm_proto import kms_kubernetes_v1beta1_pb2 as v1
from istio_hsm_proto import kms_kubernetes_v2_pb2 as v2
from istio_hsm_proto.kms_kubernetes_v1beta1_pb2_grpc import (
    KeyManagementServiceStub as V1Stub,
)
from istio_hsm_proto.kms_kubernetes_v2_pb2_grpc import KeyManagementServiceStub as V2Stub
from tests.support import plugin as plugins
from tests.support.plugin import NOT_SERVING, SERVING, Plugin
from tests.support.softhsm import SoftHsm

SEED = b"seed of a kube-apiserver, 32 byte"


@pytest.fixture
def kubernetes(hsm: SoftHsm, folder: Path) -> Iterator[Plugin]:
    """A plugin that serves Kubernetes too, its KEK made."""
    with plugins.running(hsm, folder, arguments=["--kms-kek-id", "etcd-1"]) as plugin:
        make_kek(plugin, b"etcd-1")
        yield plugin


def make_kek(plugin: Plugin, kek_id: bytes) -> None:
    with plugin.keys() as keys:
        keys.GenerateKEK(mesh.GenerateKEKRequest(kek_kid=kek_id))


def refused(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details() or ""


def test_v2_encrypts_and_decrypts_under_the_key_id_of_its_status(kubernetes: Plugin) -> None:
    with kubernetes.channel() as channel:
        stub = V2Stub(channel)
        status = stub.Status(v2.StatusRequest())
        assert status == v2.StatusResponse(version="v2", healthz="ok", key_id="etcd-1")
        sealed = stub.Encrypt(v2.EncryptRequest(plaintext=SEED, uid="1"))
        assert sealed.key_id == status.key_id
        assert SEED not in sealed.ciphertext
        assert len(sealed.ciphertext) < 1024
        request = v2.DecryptRequest(ciphertext=sealed.ciphertext, uid="2", key_id=sealed.key_id)
        assert stub.Decrypt(request).plaintext == SEED


def test_a_changed_ciphertext_or_key_id_is_refused(kubernetes: Plugin) -> None:
    with kubernetes.channel() as channel:
        stub = V2Stub(channel)
        sealed = stub.Encrypt(v2.EncryptRequest(plaintext=SEED))
        head, _, tail = sealed.ciphertext.rpartition(b".")
        changed = head + b"." + (b"A" if tail[:1] != b"A" else b"B") + tail[1:]
        for request in (
            v2.DecryptRequest(ciphertext=changed, key_id=sealed.key_id),
            v2.DecryptRequest(ciphertext=sealed.ciphertext, key_id="etcd-2"),
            v2.DecryptRequest(ciphertext=sealed.ciphertext),
            v2.DecryptRequest(key_id=sealed.key_id),
        ):
            code, _ = refused(lambda request=request: stub.Decrypt(request))  # type: ignore[misc] # bound now
            assert code is grpc.StatusCode.INVALID_ARGUMENT


def test_a_dek_of_the_mesh_does_not_come_out_here(kubernetes: Plugin) -> None:
    with kubernetes.keys() as keys, kubernetes.channel() as channel:
        dek = keys.GenerateDEK(mesh.GenerateDEKRequest(kek_kid=b"etcd-1")).encrypted_dek_blob
        request = v2.DecryptRequest(ciphertext=dek, key_id="etcd-1")
        code, details = refused(lambda: V2Stub(channel).Decrypt(request))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "not made for Kubernetes" in details
        old = v1.DecryptRequest(version="v1beta1", cipher=dek)
        assert refused(lambda: V1Stub(channel).Decrypt(old))[0] is grpc.StatusCode.INVALID_ARGUMENT


def test_a_new_kek_encrypts_and_the_old_one_still_decrypts(
    kubernetes: Plugin, hsm: SoftHsm, folder: Path
) -> None:
    with kubernetes.channel() as channel:
        sealed = V2Stub(channel).Encrypt(v2.EncryptRequest(plaintext=SEED))
        cipher = V1Stub(channel).Encrypt(v1.EncryptRequest(version="v1beta1", plain=SEED)).cipher
    make_kek(kubernetes, b"etcd-2")
    kubernetes.stop()
    with (
        plugins.running(hsm, folder, arguments=["--kms-kek-id", "etcd-2"]) as plugin,
        plugin.channel() as channel,
    ):
        stub = V2Stub(channel)
        assert stub.Status(v2.StatusRequest()).key_id == "etcd-2"
        assert stub.Encrypt(v2.EncryptRequest(plaintext=SEED)).key_id == "etcd-2"
        request = v2.DecryptRequest(ciphertext=sealed.ciphertext, key_id=sealed.key_id)
        assert stub.Decrypt(request).plaintext == SEED
        old = v1.DecryptRequest(version="v1beta1", cipher=cipher)
        assert V1Stub(channel).Decrypt(old).plain == SEED


def test_status_says_why_it_is_not_well(hsm: SoftHsm, folder: Path) -> None:
    with (
        plugins.running(hsm, folder, arguments=["--kms-kek-id", "not-made"]) as plugin,
        plugin.channel() as channel,
    ):
        status = V2Stub(channel).Status(v2.StatusRequest())
        assert 'has the id "not-made"' in status.healthz
        assert status.key_id == "not-made"
        make_kek(plugin, b"not-made")
        assert V2Stub(channel).Status(v2.StatusRequest()).healthz == "ok"


def test_status_answers_while_the_token_is_away(hsm: SoftHsm, folder: Path) -> None:
    hsm.pin_file.unlink()
    with (
        plugins.running(
            hsm, folder, arguments=["--kms-kek-id", "etcd-1"], wanted=NOT_SERVING
        ) as plugin,
        plugin.channel() as channel,
    ):
        status = V2Stub(channel).Status(v2.StatusRequest())
        assert "is not connected" in status.healthz
        request = v2.EncryptRequest(plaintext=SEED)
        assert refused(lambda: V2Stub(channel).Encrypt(request))[0] is grpc.StatusCode.UNAVAILABLE


def test_v1_speaks_v1beta1_and_nothing_else(kubernetes: Plugin) -> None:
    with kubernetes.channel() as channel:
        stub = V1Stub(channel)
        answer = stub.Version(v1.VersionRequest(version="v1beta1"))
        assert (answer.version, answer.runtime_name) == ("v1beta1", "hsm-plugin")
        assert answer.runtime_version.count(".") == 2
        cipher = stub.Encrypt(v1.EncryptRequest(version="v1beta1", plain=SEED)).cipher
        assert stub.Decrypt(v1.DecryptRequest(version="v1beta1", cipher=cipher)).plain == SEED
        for call in (
            lambda: stub.Version(v1.VersionRequest(version="v1")),
            lambda: stub.Encrypt(v1.EncryptRequest(plain=SEED)),
            lambda: stub.Decrypt(v1.DecryptRequest(version="v2", cipher=cipher)),
        ):
            assert refused(call)[0] is grpc.StatusCode.INVALID_ARGUMENT


def test_health_knows_the_services_of_kubernetes(kubernetes: Plugin) -> None:
    for service in ("v2.KeyManagementService", "v1beta1.KeyManagementService"):
        assert kubernetes.health(service) == SERVING


def test_without_a_kek_named_kubernetes_is_not_served(plugin: Plugin) -> None:
    assert plugin.health("v2.KeyManagementService") is None
    with plugin.channel() as channel:
        code, _ = refused(lambda: V2Stub(channel).Status(v2.StatusRequest()))
        assert code is grpc.StatusCode.UNIMPLEMENTED
        code, _ = refused(lambda: V1Stub(channel).Version(v1.VersionRequest(version="v1beta1")))
        assert code is grpc.StatusCode.UNIMPLEMENTED


def test_a_kek_id_that_cannot_be_one_is_a_fault_of_the_settings(hsm: SoftHsm, folder: Path) -> None:
    environment = hsm.environment() | {"SOCKET": str(folder / ".sock")}
    outcome = plugins.command(["serve", "--kms-kek-id", "two words"], environment=environment)
    assert outcome.returncode == 2
    assert "--kms-kek-id: KEK id is not visible ASCII" in outcome.stderr
