"""The CA service over the TLS front, and what the front costs beside grpcio's own TLS.

`python -m bench.ca_front` prints JSON. One process serves and another loads it, on the same
cores. `create_certificate` is the whole way on a CA key in memory: TLS, caller, CSR, signature,
check. `empty_call` is a gRPC health check and shows the front alone.
"""

import asyncio
import dataclasses
import json
import multiprocessing
import sys
import tempfile
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from bench.load import Load, measure, median_of
from istio_hsm_proto import istio_ca_pb2 as ca
from istio_hsm_proto.istio_ca_pb2_grpc import (
    IstioCertificateServiceStub,
    add_IstioCertificateServiceServicer_to_server,
)
from istiod_ca_bridge.admission import Admission
from istiod_ca_bridge.authn import TrustDomain
from istiod_ca_bridge.authority import Authority, authority, new_serial
from istiod_ca_bridge.ca_service import CertificateService, ServiceSettings
from istiod_ca_bridge.chain import checked_chain, pem_of
from istiod_ca_bridge.hsm_key import MemoryKey
from istiod_ca_bridge.issue import issue
from istiod_ca_bridge.log import event_log
from istiod_ca_bridge.metrics import Metrics
from istiod_ca_bridge.policy import Grant, TtlPolicy
from istiod_ca_bridge.server_certificate import make_server_certificate
from istiod_ca_bridge.tls_front import TlsFront, bind
from istiod_ca_bridge.workload_issuer import WorkloadIssuer

_CONCURRENT = 8
_SECONDS = 3.0
_RUNS = 3
_NAME = "localhost"
_OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))


def main() -> int:
    """Return the exit code."""
    result = {
        way: {name: dataclasses.asdict(load) for name, load in asyncio.run(_loads(way)).items()}
        for way in ("grpcio_tls", "tls_front")
    }
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    return 0


async def _loads(way: str) -> dict[str, Load]:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(way, there))
    process.start()
    try:
        port, root, key, chain = await asyncio.to_thread(here.recv)
        credentials = grpc.ssl_channel_credentials(root, key, chain)
        options = (("grpc.ssl_target_name_override", _NAME), *_OPTIONS)
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
            loads = {"empty_call": await _runs(_empty_call(channel))}
            if way == "tls_front":
                loads["create_certificate"] = await _runs(_create_certificate(channel))
        return loads
    finally:
        here.send("stop")
        process.join()


async def _runs(call: Callable[[], Awaitable[object]]) -> Load:
    await measure(call, concurrent=_CONCURRENT, seconds=0.5)
    runs = [await measure(call, concurrent=_CONCURRENT, seconds=_SECONDS) for _ in range(_RUNS)]
    return median_of(runs)


def _empty_call(channel: grpc.aio.Channel) -> Callable[[], Awaitable[object]]:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    return lambda: stub.Check(health_pb2.HealthCheckRequest(), timeout=10)


def _create_certificate(channel: grpc.aio.Channel) -> Callable[[], Awaitable[object]]:
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    pem = csr.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
    stub = IstioCertificateServiceStub(channel)
    return lambda: stub.CreateCertificate(ca.IstioCertificateRequest(csr=pem), timeout=10)


def _serve(way: str, pipe: Connection) -> None:
    asyncio.run(_serving(way, pipe))


async def _serving(way: str, pipe: Connection) -> None:
    own = _authority()
    key, chain = await _client_certificate(own)
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    if way == "grpcio_tls":
        credentials = grpc.ssl_server_credentials(
            [(key, chain)], own.roots_pem.encode(), require_client_auth=True
        )
        port = server.add_secure_port("127.0.0.1:0", credentials)
        await server.start()
        pipe.send((port, own.roots_pem.encode(), key, chain))
        await asyncio.to_thread(pipe.recv)
        await server.stop(0)
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        log = event_log("text")
        front = TlsFront(Path(folder) / "grpc", Path(folder), log)
        metrics = Metrics()
        issuer = WorkloadIssuer(
            TtlPolicy(timedelta(days=1), timedelta(days=90)),
            lambda: own,
            Admission(64, 4096, metrics),
            lambda: datetime.now(UTC),
        )
        service = CertificateService(
            ServiceSettings(TrustDomain("cluster.local"), "Kubernetes"),
            issuer,
            front.peer,
            None,
            lambda: datetime.now(UTC),
            log,
            metrics,
        )
        add_IstioCertificateServiceServicer_to_server(service, server)
        server.add_insecure_port(f"unix:{folder}/grpc")
        await server.start()
        certificate = await make_server_certificate(own, (_NAME,), datetime.now(UTC))
        front.use(certificate.context, recheck_clients=False)
        listener = bind("127.0.0.1", 0)
        task = asyncio.create_task(front.serve(listener))
        await asyncio.sleep(0)
        pipe.send((listener.getsockname()[1], own.roots_pem.encode(), key, chain))
        await asyncio.to_thread(pipe.recv)
        task.cancel()
        front.close()
        await server.stop(0)


def _authority() -> Authority:
    """Return an RSA-2048 CA in memory under a throw-away root."""
    now = datetime.now(UTC).replace(microsecond=0)
    root_key = ec.generate_private_key(ec.SECP256R1())
    key = rsa.generate_private_key(65537, 2048)
    root = x509.Name.from_rfc4514_string("CN=bench root")

    def certificate(subject: x509.Name, public_key: Any) -> x509.Certificate:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(root)
            .public_key(public_key)
            .serial_number(new_serial())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(root_key, hashes.SHA256())
        )

    chain = pem_of(
        certificate(x509.Name.from_rfc4514_string("O=cluster.local"), key.public_key()),
        certificate(root, root_key.public_key()),
    )
    return authority(checked_chain(chain.encode(), key.public_key(), now), MemoryKey(key))


async def _client_certificate(own: Authority) -> tuple[bytes, bytes]:
    """Return key and chain of a workload that is also called localhost."""
    now = datetime.now(UTC).replace(microsecond=0)
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = await issue(
        own.issuer,
        Grant(
            key.public_key(),
            new_serial(),
            now - timedelta(minutes=2),
            now + timedelta(hours=1),
            uris=("spiffe://cluster.local/ns/shop/sa/cart",),
            dns_names=(_NAME,),
        ),
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return pem, (pem_of(leaf) + own.intermediates_pem).encode()


if __name__ == "__main__":
    sys.exit(main())
