"""The gRPC servers of a bridge: the CA's API behind the TLS front, and health in the clear."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2_grpc

from istio_hsm_proto.istio_ca_pb2_grpc import add_IstioCertificateServiceServicer_to_server
from istiod_ca_bridge.ca_service import CertificateService
from istiod_ca_bridge.errors import BridgeError
from istiod_ca_bridge.setting_values import Address
from istiod_ca_bridge.well_formed import well_formed

_OPTIONS = [
    ("grpc.max_receive_message_length", 64 << 10),
    ("grpc.max_metadata_size", 32 << 10),
    ("grpc.max_concurrent_streams", 256),
    ("grpc.server_handshake_timeout_ms", 5000),
    ("grpc.max_connection_idle_ms", 60 * 1000),
    ("grpc.max_connection_age_ms", 60 * 60 * 1000),
    ("grpc.max_connection_age_grace_ms", 30 * 1000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10 * 1000),
    ("grpc.so_reuseport", 0),
]


@contextlib.asynccontextmanager
async def ca_server(
    service: CertificateService, servicer: health.aio.HealthServicer, socket: Path
) -> AsyncIterator[grpc.aio.Server]:
    """Serve the CA's API and health on a Unix socket that only the front reaches."""
    server = grpc.aio.server(options=_OPTIONS)
    add_IstioCertificateServiceServicer_to_server(service, well_formed(server))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, well_formed(server))
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    try:
        yield server
    finally:
        await server.stop(0)


@contextlib.asynccontextmanager
async def health_server(
    servicer: health.aio.HealthServicer, listen: Address | None
) -> AsyncIterator[None]:
    """Serve health in the clear, from the first moment on, where the operator wants it."""
    if listen is None:
        yield
        return
    server = grpc.aio.server(options=_OPTIONS)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, well_formed(server))
    try:
        server.add_insecure_port(str(listen))
    except RuntimeError as error:
        raise BridgeError(f"cannot listen on {listen}", hint="look at HEALTH_LISTEN") from error
    await server.start()
    try:
        yield
    finally:
        await server.stop(0)
