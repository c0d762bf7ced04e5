"""What each RPC is called and which key it names, read from the services' descriptors."""

from dataclasses import dataclass

from google.protobuf import message_factory
from google.protobuf.descriptor import ServiceDescriptor

from istio_hsm_proto import control_v1_pb2 as control
from istio_hsm_proto import inspection_v1_pb2 as inspection
from istio_hsm_proto import kms_istio_v1_pb2 as kms
from istio_hsm_proto import kms_kubernetes_v1beta1_pb2 as kms_v1
from istio_hsm_proto import kms_kubernetes_v2_pb2 as kms_v2
from istio_hsm_proto import rotation_v1_pb2 as rotation
from istio_hsm_proto import signing_v1_pb2 as signing

_KEY_FIELDS = ("kek_kid", "key_id", "ca_id", "new_kek_id", "kek_id")


@dataclass(frozen=True, slots=True)
class Rpc:
    """One method of one service."""

    service: str
    """Full name."""
    method: str
    key_field: str
    """The request's field that names the key; empty when it names none."""


UNKNOWN = Rpc("unknown", "unknown", "")


def rpc_of(request: object) -> Rpc:
    """Return the RPC that takes such a request."""
    return _RPCS.get(type(request), UNKNOWN)


def _rpcs_of(service: ServiceDescriptor) -> dict[type, Rpc]:
    return {
        message_factory.GetMessageClass(method.input_type): Rpc(
            service.full_name,
            method.name,
            next((name for name in _KEY_FIELDS if name in method.input_type.fields_by_name), ""),
        )
        for method in service.methods
    }


SERVICES = tuple(
    service
    for module in (kms, signing, control, inspection, rotation, kms_v2, kms_v1)
    for service in module.DESCRIPTOR.services_by_name.values()
)
_RPCS = {kind: rpc for service in SERVICES for kind, rpc in _rpcs_of(service).items()}
