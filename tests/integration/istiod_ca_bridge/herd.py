"""A herd: so many sidecars ask for their first certificate at the same moment.

Each has its own key, TLS connection and token, keeps its connection, and does as Istio's agent:
five tries with growing pauses when the status is one of those that it tries again for, and when
they are used up, its Envoy asks anew. Whoever gets another status, or nothing in the time, failed
for good.
"""

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field

import grpc
from cryptography.hazmat.primitives.asymmetric import ec

from istio_hsm_proto import istio_ca_pb2 as ca
from istio_hsm_proto.istio_ca_pb2_grpc import IstioCertificateServiceStub
from tests.integration.istiod_ca_bridge import harness

_NAMESPACES = 50
_TRIES = 5
_FIRST_PAUSE = 0.1
_ENVOYS_PAUSE = 1.0
_LONGEST_PAUSE = 15.0
_CALL_SECONDS = 30.0
_RETRIED = {
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNAVAILABLE,
}
_OPTIONS = (
    ("grpc.ssl_target_name_override", "istiod.istio-system.svc"),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
)


@dataclass(slots=True)
class Herd:
    """How a herd fared."""

    seconds: list[float] = field(default_factory=list)
    """From the start to its certificate, for each sidecar that got one."""

    failed: Counter[str] = field(default_factory=Counter)
    """Those that failed for good, by the last status."""

    retried: Counter[str] = field(default_factory=Counter)
    """Tries that were followed by another, by status."""


@dataclass(frozen=True, slots=True)
class _Sidecar:
    request: ca.IstioCertificateRequest
    metadata: tuple[tuple[str, str | bytes], ...]


async def stampede(
    bridge: harness.Bridge, tokens: harness.TokenIssuer, count: int, seconds: float
) -> Herd:
    """Return how `count` sidecars fared that start at once and give up after `seconds`."""
    sidecars = [_sidecar(tokens, number) for number in range(count)]
    credentials = grpc.ssl_channel_credentials(bridge.root_file.read_bytes())
    herd = Herd()
    done = asyncio.Barrier(count)
    began = time.monotonic()

    async def live(sidecar: _Sidecar) -> None:
        async with grpc.aio.secure_channel(bridge.address, credentials, _OPTIONS) as channel:
            await _first_certificate(channel, sidecar, herd, began, seconds)
            await done.wait()  # an agent keeps its connection

    async with asyncio.TaskGroup() as tasks:
        for sidecar in sidecars:
            tasks.create_task(live(sidecar))
    return herd


async def _first_certificate(
    channel: grpc.aio.Channel, sidecar: _Sidecar, herd: Herd, began: float, seconds: float
) -> None:
    stub = IstioCertificateServiceStub(channel)
    tries, envoys = 0, 0
    while True:
        try:
            reply = await stub.CreateCertificate(
                sidecar.request, metadata=sidecar.metadata, timeout=_CALL_SECONDS
            )
        except grpc.aio.AioRpcError as error:
            status = error.code()
        else:
            assert len(reply.cert_chain) > 1
            herd.seconds.append(time.monotonic() - began)
            return
        if status not in _RETRIED or time.monotonic() - began > seconds:
            herd.failed[status.name] += 1
            return
        herd.retried[status.name] += 1
        tries += 1
        pause = _FIRST_PAUSE * 2 ** (tries - 1)
        if tries == _TRIES:
            longest = min(_ENVOYS_PAUSE * 2**envoys, _LONGEST_PAUSE)
            pause = random.uniform(0.5, 1.0) * longest  # noqa: S311 - jitter
            tries, envoys = 0, envoys + 1
        await asyncio.sleep(pause)


def _sidecar(tokens: harness.TokenIssuer, number: int) -> _Sidecar:
    csr = harness.csr_of(ec.generate_private_key(ec.SECP256R1()))
    token = tokens.token(f"team-{number % _NAMESPACES}", f"app-{number}")
    return _Sidecar(
        ca.IstioCertificateRequest(csr=csr),
        (("clusterid", "Kubernetes"), ("authorization", f"Bearer {token}")),
    )
