"""Whatever bytes a method is sent, its status is one of the contract's, and the server lives."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from istio_hsm_proto import control_v1_pb2 as control
from istio_hsm_proto import kms_istio_v1_pb2 as kms
from istio_hsm_proto import kms_kubernetes_v1beta1_pb2 as kms_v1
from istio_hsm_proto import kms_kubernetes_v2_pb2 as kms_v2
from istio_hsm_proto import signing_v1_pb2 as signing
from tests.support import pki, softhsm
from tests.support import plugin as plugins
from tests.support.plugin import SERVING, Plugin
from tests.support.wire_fuzz import requests

_KEK = b"fuzzed-kek"
_CONTRACT = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
_METHODS = [
    method
    for file in (kms, signing, control, kms_v1, kms_v2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]


@dataclass(frozen=True, slots=True)
class Target:
    """A plugin with a token of its own, and values that its methods accept."""

    plugin: Plugin
    channel: grpc.Channel
    pool: tuple[bytes, ...]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    hsm = softhsm.make_token(tmp_path_factory.mktemp("fuzzed-token"))
    folder = tmp_path_factory.mktemp("fuzzed")
    arguments = ["--kms-kek-id", _KEK.decode()]
    with plugins.running(hsm, folder, arguments=arguments) as plugin, plugin.channel() as channel:
        with plugin.keys() as stub:
            stub.GenerateKEK(kms.GenerateKEKRequest(kek_kid=_KEK))
            dek = stub.GenerateDEK(kms.GenerateDEKRequest(kek_kid=_KEK)).encrypted_dek_blob
            sealed = stub.AuthenticatedEncrypt(
                kms.AuthenticatedEncryptRequest(
                    kek_kid=_KEK, encrypted_dek_blob=dek, plaintext=b"plaintext"
                )
            ).ciphertext
            root = pki.root()
            stub.ImportCACert(kms.ImportCACertRequest(ca_cert_blob=root.pem))
        with plugin.signing() as signer:
            signer.GenerateSigningKey(
                signing.GenerateSigningKeyRequest(key_id=b"k", algorithm=signing.ECDSA_P256)
            )
        leaf = pki.leaf(root).der
        yield Target(plugin, channel, (_KEK, dek, sealed, root.pem, leaf, b"k", b"d" * 32))


@pytest.mark.parametrize("method", _METHODS, ids=lambda method: method.full_name)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_every_answer_is_one_of_the_contract(
    target: Target, method: MethodDescriptor, data: st.DataObject
) -> None:
    request = data.draw(requests(method.input_type, target.pool))
    call: Any = target.channel.unary_unary(f"/{method.containing_service.full_name}/{method.name}")
    try:
        call(request, timeout=20)
        status, details = grpc.StatusCode.OK, ""
    except grpc.RpcError as error:
        status, details = error.code(), error.details() or ""
    assert status in _CONTRACT, details
    assert len(details) < 2000


def test_after_all_that_the_plugin_serves_and_nothing_was_unforeseen(target: Target) -> None:
    assert target.plugin.health() == SERVING
    assert target.plugin.events("rpc.failed") == []
    assert "Traceback" not in target.plugin.text()
    assert target.plugin.events("worker.ended") == []
