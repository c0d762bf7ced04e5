import asyncio
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NoReturn

import grpc
import pytest

from istio_hsm_proto import istio_ca_pb2 as ca
from istiod_ca_bridge.authn import Caller
from istiod_ca_bridge.ca_service import CertificateService, ServiceSettings
from istiod_ca_bridge.errors import UnauthenticatedError
from istiod_ca_bridge.policy import TtlPolicy
from istiod_ca_bridge.tls_front import Peer
from tests.unit.istiod_ca_bridge.doubles import NOW, recorded_log

SETTINGS = ServiceSettings(
    "cluster.local", "Kubernetes", TtlPolicy(timedelta(hours=1), timedelta(days=1)), in_flight=2
)


class AbortError(Exception):
    """What a call's context raises on abort."""


@dataclass(slots=True)
class Context:
    """A call of a client that sent a token."""

    code: grpc.StatusCode | None = None

    def peer(self) -> str:
        return "unix:/x"

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", "Bearer secret-token"),)

    async def abort(self, code: grpc.StatusCode, _details: str) -> NoReturn:
        self.code = code
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
    return (
        CertificateService(SETTINGS, lambda: None, lambda _: Peer(None), tokens, lambda: NOW, log),
        lines,
    )


async def answer(tested: CertificateService) -> grpc.StatusCode | None:
    context: Any = Context()
    with pytest.raises(AbortError):
        await tested.CreateCertificate(ca.IstioCertificateRequest(), context)
    code: grpc.StatusCode | None = context.code
    return code


async def test_more_calls_at_once_than_the_cap_are_told_to_come_again_and_the_place_is_freed() -> (
    None
):
    tokens = Tokens()
    tested, _ = service(tokens)
    waiting = [asyncio.create_task(answer(tested)) for _ in range(2)]
    await asyncio.sleep(0)

    assert await answer(tested) is grpc.StatusCode.RESOURCE_EXHAUSTED
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
