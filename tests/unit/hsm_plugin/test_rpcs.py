"""Every RPC has its name and its key by the type of its request."""

from hsm_plugin.rpcs import SERVICES, UNKNOWN, rpc_of
from istio_hsm_proto import control_v1_pb2 as control
from istio_hsm_proto import kms_istio_v1_pb2 as kms
from istio_hsm_proto import kms_kubernetes_v1beta1_pb2 as kms_v1
from istio_hsm_proto import kms_kubernetes_v2_pb2 as kms_v2
from istio_hsm_proto import rotation_v1_pb2 as rotation
from istio_hsm_proto import signing_v1_pb2 as signing


def test_a_request_tells_its_service_and_its_method() -> None:
    rpc = rpc_of(signing.SignRequest())
    assert (rpc.service, rpc.method) == ("istiohsm.signing.v1.SigningService", "Sign")
    assert rpc_of(kms_v1.EncryptRequest()) != rpc_of(kms_v2.EncryptRequest())
    assert rpc_of("no message") is UNKNOWN


def test_a_request_tells_which_of_its_fields_names_the_key() -> None:
    assert rpc_of(kms.GenerateDEKRequest()).key_field == "kek_kid"
    assert rpc_of(signing.DestroyKeyRequest()).key_field == "key_id"
    assert rpc_of(kms.ImportCACertRequest()).key_field == "ca_id"
    assert rpc_of(rotation.RewrapDEKRequest()).key_field == "new_kek_id"
    assert rpc_of(rotation.DestroyKEKRequest()).key_field == "kek_id"
    assert rpc_of(control.ReloadCredentialsRequest()).key_field == ""


def test_no_two_methods_share_a_request() -> None:
    methods = [method for service in SERVICES for method in service.methods]
    assert len({method.input_type.full_name for method in methods}) == len(methods)
