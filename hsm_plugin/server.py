"""The gRPC server: the services that it offers, health, and reflection."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from hsm_plugin.audit_chain import Head
from hsm_plugin.callers import Callers
from hsm_plugin.control_service import Control
from hsm_plugin.dek_supply import DekSupply
from hsm_plugin.edge import Edge, Witness
from hsm_plugin.inspection_service import Inspection
from hsm_plugin.keys import KekCipher
from hsm_plugin.kubernetes_kms import KubernetesKms
from hsm_plugin.kubernetes_servicers import KubernetesV1Servicer, KubernetesV2Servicer
from hsm_plugin.rotation_service import Rotation
from hsm_plugin.rsa_keys import RsaKeys
from hsm_plugin.service import KeyManagement, utc_now
from hsm_plugin.servicers import (
    ControlServicer,
    InspectionServicer,
    KeyManagementServicer,
    RotationServicer,
    SigningServicer,
)
from hsm_plugin.signing_service import Signing
from hsm_plugin.token_client import TokenClient
from hsm_plugin.token_memory import TokenMemory
from hsm_plugin.well_formed import well_formed
from istio_hsm_proto import control_v1_pb2 as control
from istio_hsm_proto import control_v1_pb2_grpc as control_grpc
from istio_hsm_proto import inspection_v1_pb2 as inspection
from istio_hsm_proto import inspection_v1_pb2_grpc as inspection_grpc
from istio_hsm_proto import kms_istio_v1_pb2 as kms
from istio_hsm_proto import kms_istio_v1_pb2_grpc as kms_grpc
from istio_hsm_proto import kms_kubernetes_v1beta1_pb2 as kms_v1
from istio_hsm_proto import kms_kubernetes_v1beta1_pb2_grpc as kms_v1_grpc
from istio_hsm_proto import kms_kubernetes_v2_pb2 as kms_v2
from istio_hsm_proto import kms_kubernetes_v2_pb2_grpc as kms_v2_grpc
from istio_hsm_proto import rotation_v1_pb2 as rotation
from istio_hsm_proto import rotation_v1_pb2_grpc as rotation_grpc
from istio_hsm_proto import signing_v1_pb2 as signing
from istio_hsm_proto import signing_v1_pb2_grpc as signing_grpc

MAX_MESSAGE_BYTES = 2 << 20
_SERVICES = (
    kms.DESCRIPTOR.services_by_name["KeyManagementService"].full_name,
    signing.DESCRIPTOR.services_by_name["SigningService"].full_name,
    control.DESCRIPTOR.services_by_name["ControlService"].full_name,
    rotation.DESCRIPTOR.services_by_name["RotationService"].full_name,
    inspection.DESCRIPTOR.services_by_name["InspectionService"].full_name,
)
_KUBERNETES_SERVICES = (
    kms_v2.DESCRIPTOR.services_by_name["KeyManagementService"].full_name,
    kms_v1.DESCRIPTOR.services_by_name["KeyManagementService"].full_name,
)
_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.max_concurrent_streams", 1024),
    ("grpc.server_handshake_timeout_ms", 5000),
    ("grpc.so_reuseport", 0),
)


@dataclass(frozen=True, slots=True)
class Apis:
    """What the services are made of, besides the token."""

    memory: TokenMemory
    rsa_keys: RsaKeys
    control: Control
    kubernetes_kek_id: str
    """Empty: Kubernetes' services are not offered."""
    callers: Callers
    kek_cipher: KekCipher
    witness: Witness
    audit_head: Callable[[], Head]
    forget: Callable[[], None]
    """Called when what the token told before may no longer be used."""
    supply: DekSupply


def services(apis: Apis) -> tuple[str, ...]:
    """Return the full names of the services that `build` offers."""
    return (*_SERVICES, *_KUBERNETES_SERVICES) if apis.kubernetes_kek_id else _SERVICES


def build(
    token: TokenClient, apis: Apis, health_servicer: health.aio.HealthServicer
) -> grpc.aio.Server:
    """Return the server, not started and with no port yet."""
    server = grpc.aio.server(options=_OPTIONS)
    strict = well_formed(server)
    kms_grpc.add_KeyManagementServiceServicer_to_server(
        KeyManagementServicer(
            Edge(
                token,
                apis.callers,
                lambda store: KeyManagement(
                    *(store, utc_now, apis.rsa_keys.make, apis.memory, apis.kek_cipher),
                    apis.supply,
                ),
                apis.witness,
            )
        ),
        strict,
    )
    signing_grpc.add_SigningServiceServicer_to_server(
        SigningServicer(Edge(token, apis.callers, Signing, apis.witness)), strict
    )
    control_grpc.add_ControlServiceServicer_to_server(
        ControlServicer(Edge(token, apis.callers, lambda _store: apis.control, apis.witness)),
        strict,
    )
    inspection_grpc.add_InspectionServiceServicer_to_server(
        InspectionServicer(
            Edge(
                token,
                apis.callers,
                lambda store: Inspection(store, token.snapshot, apis.audit_head),
                apis.witness,
            )
        ),
        strict,
    )
    rotation_grpc.add_RotationServiceServicer_to_server(
        RotationServicer(
            Edge(
                token,
                apis.callers,
                lambda store: Rotation(
                    *(store, apis.kek_cipher, apis.kubernetes_kek_id, apis.forget)
                ),
                apis.witness,
            )
        ),
        strict,
    )
    if apis.kubernetes_kek_id:
        edge = Edge(
            token,
            apis.callers,
            lambda store: KubernetesKms(store, apis.kubernetes_kek_id, apis.kek_cipher),
            apis.witness,
        )
        kms_v2_grpc.add_KeyManagementServiceServicer_to_server(KubernetesV2Servicer(edge), strict)
        kms_v1_grpc.add_KeyManagementServiceServicer_to_server(KubernetesV1Servicer(edge), strict)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, strict)
    names = (*services(apis), health.SERVICE_NAME, reflection.SERVICE_NAME)
    # Not by enable_server_reflection: it registers its method with the server itself, whose
    # accepting of every call then waits for two things instead of one.
    add_reflection: Any = reflection_pb2_grpc.add_ServerReflectionServicer_to_server
    add_reflection(reflection.aio.ReflectionServicer(names), strict)
    return server
