import asyncio
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NoReturn

import grpc
import pytest

from istio_hsm_proto import istio_ca_pb2 as ca
from istiod_ca_bridge.admission import Admission
from istiod_ca_bridge.authn import Caller, TrustDomain
from istiod_ca_bridge.ca_service import CertificateService, ServiceSettings
from istiod_ca_bridge.errors import UnauthenticatedError
from istiod_ca_bridge.metrics import Metrics
from istiod_ca_bridge.policy import TtlPolicy
from istiod_ca_bridge.tls_front import Peer
from istiod_ca_bridge.workload_issuer import WorkloadIssuer
from tests.unit.istiod_ca_bridge.doubles import NOW, recorded_log

SETTINGS = ServiceSettings(TrustDomain("cluster.local"), "Kubernetes", in_flight=2)
TTL = TtlPolicy(timedelta(hours=1), timedelta(days=1))


class AbortError(Exception):
    """What a call's context raises on abort."""


@dataclass(slots=True)
class Context:
    """A call of a client that sent a token."""

    code: grpc.StatusCode | None = None
    trailing: dict[str, str] = field(default_factory=dict)

    def peer(self) -> str:
        return "unix:/x"

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", "Bearer secret-token"),)

    def time_remaining(self) -> float:
        return 60.0

    async def abort(
        self, code: grpc.StatusCode, _details: str, trailing: tuple[tuple[str, str], ...]
    ) -> NoReturn:
        self.code = code
        self.trailing = dict(trailing)
        raise AbortError


@dataclass(slots=True)
class Tokens:
    """Refuses every token, once it is let."""

    open: asyncio.Event = field(default_factory=asyncio.Event)

    async def authenticate(self, _token: str) -> Caller:
        await self.open.wait()
        raise UnauthenticatedError("no")


def service(tokens: Tokens) -> tuple[CertificateService, list[str]]:
    log, lines = recorded_log()
    metrics = Metrics()
    issuer = WorkloadIssuer(TTL, lambda: None, Admission(1, 1, metrics), lambda: NOW)
    peers = {"unix:/x": Peer(None)}
    return (
        CertificateService(SETTINGS, issuer, peers.get, tokens, lambda: NOW, log, metrics),
        lines,
    )


async def ended(tested: CertificateService) -> Context:
    context: Any = Context()
    with pytest.raises(AbortError):
        await tested.CreateCertificate(ca.IstioCertificateRequest(), context)
    own: Context = context
    return own


async def answer(tested: CertificateService) -> grpc.StatusCode | None:
    return (await ended(tested)).code


async def test_more_calls_at_once_than_the_cap_are_told_to_come_again_and_the_place_is_freed() -> (
    None
):
    tokens = Tokens()
    tested, _ = service(tokens)
    waiting = [asyncio.create_task(answer(tested)) for _ in range(2)]
    await asyncio.sleep(0)

    refused = await ended(tested)
    assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert 500 <= int(refused.trailing["grpc-retry-pushback-ms"]) <= 15_000
    tokens.open.set()
    assert await asyncio.gather(*waiting) == [grpc.StatusCode.UNAUTHENTICATED] * 2
    assert await answer(tested) is grpc.StatusCode.UNAUTHENTICATED


async def test_a_flood_of_wrong_tokens_does_not_flood_the_log() -> None:
    tokens = Tokens()
    tokens.open.set()
    tested, lines = service(tokens)
    for _ in range(1000):
        assert await answer(tested) is grpc.StatusCode.UNAUTHENTICATED

    assert 20 <= len(lines) < 100
    assert not any("secret-token" in line for line in lines)
