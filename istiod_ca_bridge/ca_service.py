"""IstioCertificateService: authenticate, issue, answer, and count it all."""

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NoReturn

from istio_hsm_proto import istio_ca_pb2 as ca
from istio_hsm_proto.istio_ca_pb2_grpc import IstioCertificateServiceServicer
from istiod_ca_bridge.authn import Caller, TokenAuthenticator, TrustDomain, caller_of_certificate
from istiod_ca_bridge.errors import (
    BridgeError,
    ForbiddenError,
    KeyServiceUnavailableError,
    NotServingError,
    OverloadedError,
    RefusedLifetimeError,
    RefusedRequestError,
    UnauthenticatedError,
)
from istiod_ca_bridge.impersonation import NodeAgents
from istiod_ca_bridge.log import EventLog
from istiod_ca_bridge.metrics import Metrics, SignError
from istiod_ca_bridge.status import status_of, told
from istiod_ca_bridge.throttle import Throttle
from istiod_ca_bridge.tls_front import Peer
from istiod_ca_bridge.workload_issuer import Issued, WorkloadIssuer

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    import grpc

    Context = grpc.aio.ServicerContext[ca.IstioCertificateRequest, ca.IstioCertificateResponse]

_BEARER = "Bearer "
_IMPERSONATED = "ImpersonatedIdentity"
_MAX_CLUSTER_ID = 253
_RETRY_SECONDS = (1.0, 5.0)
_PUSHBACK = "grpc-retry-pushback-ms"
"""Trailing metadata that says when to come again (gRFC A6)."""


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """Whom the service serves, and how."""

    trust_domain: TrustDomain
    cluster_id: str
    in_flight: int = 8192
    """Requests at once, callers that are not known yet included; more are told to come again."""

    deadline: timedelta = timedelta(seconds=10)


class CertificateService(IstioCertificateServiceServicer):
    """Answers CreateCertificate as istiod does, stricter where it costs nobody anything."""

    def __init__(
        self,
        settings: ServiceSettings,
        issuer: WorkloadIssuer,
        peer: Callable[[str], Peer | None],
        tokens: TokenAuthenticator | None,
        clock: Callable[[], datetime],
        log: EventLog,
        metrics: Metrics,
        *,
        agents: NodeAgents | None = None,
        revoked: "Container[int]" = frozenset(),
        remote_tokens: Callable[[str], TokenAuthenticator | None] = lambda _: None,
    ) -> None:
        self._settings = settings
        self._issuer = issuer
        self._peer = peer
        self._tokens = tokens
        self._clock = clock
        self._log = log
        self._metrics = metrics
        self._agents = agents
        self._remote_tokens = remote_tokens
        self._revoked = revoked
        """Serials."""

        self._in_flight = 0
        self._anyones = Throttle()
        metrics.in_flight.set_function(lambda: self._in_flight)

    async def CreateCertificate(
        self, request: ca.IstioCertificateRequest, context: "Context"
    ) -> ca.IstioCertificateResponse:
        """Answer the caller's certificate, leaf first, all roots last."""
        began = time.monotonic()
        caller: Caller | None = None
        self._metrics.csrs.inc()
        self._in_flight += 1
        try:
            self._admit()
            async with asyncio.timeout(self._time_left(context)) as limit:
                caller = await self._authenticate(context)
                issued = await self._issue(request, caller, limit)
        except TimeoutError:
            late = KeyServiceUnavailableError("the deadline passed before the signature")
            await self._refuse(late, caller, context, began)
        except BridgeError as error:
            await self._refuse(error, caller, context, began)
        except Exception as error:  # noqa: BLE001 - the edge: what was not foreseen says nothing
            self._log.error("request.failed", error=type(error).__name__)
            await self._refuse(BridgeError("not foreseen"), caller, context, began)
        finally:
            self._in_flight -= 1
        self._metrics.issued.inc()
        self._metrics.answered("OK", caller.method.value, time.monotonic() - began)
        self._log.info(
            "certificate.issued",
            identity=str(issued.caller.identity),
            serial=f"{issued.leaf.serial_number:x}",
            not_after=issued.leaf.not_valid_after_utc,
            by=caller.method.value,
            pod=caller.pod,
            pod_uid=caller.pod_uid,
            agent=issued.caller.agent,
        )
        return ca.IstioCertificateResponse(cert_chain=issued.authority.answer(issued.leaf))

    async def _refuse(
        self, error: BridgeError, caller: Caller | None, context: "Context", began: float
    ) -> NoReturn:
        """Count a refusal, log it, and end the call with it."""
        status = status_of(error)
        self._count(error)
        by = caller.method.value if caller else ""
        self._metrics.answered(status.name, by, time.monotonic() - began)
        # Of those that anyone can cause, at most one a second for long.
        left_out = 0 if caller else self._anyones.admit()
        if left_out is not None:
            self._log.warning(
                "certificate.refused",
                status=status.name,
                reason=str(error),
                hint=error.hint,
                identity=str(caller.identity) if caller else "",
                left_out=left_out,
            )
        hint: tuple[tuple[str, str], ...] = ()
        if isinstance(error, OverloadedError):
            hint = ((_PUSHBACK, str(round(error.retry_after * 1000))),)
        await context.abort(status, told(error), hint)
        raise AssertionError  # abort raises

    def _count(self, error: BridgeError) -> None:
        match error:
            case UnauthenticatedError() | ForbiddenError():
                self._metrics.unauthenticated.inc()
            case RefusedLifetimeError():
                self._metrics.not_signed(SignError.TTL)
            case RefusedRequestError():
                self._metrics.bad_csrs.inc()
                self._metrics.not_signed(SignError.CSR)
            case NotServingError():
                self._metrics.not_signed(SignError.NOT_READY)
            case OverloadedError():
                pass  # it is counted where it is caused
            case _:
                self._metrics.not_signed(SignError.OTHER)

    def _admit(self) -> None:
        if self._in_flight > self._settings.in_flight:
            self._metrics.queue_refused.inc()
            raise OverloadedError(
                "too many requests are under way; try again later",
                retry_after=random.uniform(*_RETRY_SECONDS),  # noqa: S311 - so that not all come at once
            )

    def _time_left(self, context: "Context") -> float:
        """Return for how many seconds the caller and we want to go on."""
        own = self._settings.deadline.total_seconds()
        callers: float | None = context.time_remaining()  # None: it has no deadline
        return own if callers is None else min(own, callers)

    async def _authenticate(self, context: "Context") -> Caller:
        """Return the caller by client certificate, else by token, as istiod does."""
        peer = self._peer(context.peer())
        if peer is None:
            raise UnauthenticatedError("the connection is gone")
        refusal = UnauthenticatedError("neither a client certificate nor a token was sent")
        if peer.certificate is not None:
            try:
                return caller_of_certificate(
                    peer.certificate, self._settings.trust_domain, self._clock(), self._revoked
                )
            except UnauthenticatedError as error:
                refusal = error
        authorization, cluster_id = _credentials(context.invocation_metadata() or ())
        if not authorization:
            raise refusal
        tokens = self._tokens
        if cluster_id not in {"", self._settings.cluster_id}:
            tokens = self._remote_tokens(cluster_id)
            if tokens is None:
                raise UnauthenticatedError("the token is of a cluster that is not served here")
        if tokens is None:
            raise UnauthenticatedError("tokens are not accepted here")
        if not authorization.startswith(_BEARER):
            raise UnauthenticatedError("the authorization is not a bearer token")
        return await tokens.authenticate(authorization.removeprefix(_BEARER).strip())

    async def _issue(
        self, request: ca.IstioCertificateRequest, caller: Caller, limit: asyncio.Timeout
    ) -> Issued:
        impersonated = request.metadata.fields.get(_IMPERSONATED)
        if impersonated is not None and impersonated.string_value:
            if self._agents is None:
                raise ForbiddenError(
                    "this CA lets nobody ask for another's identity",
                    hint="CA_TRUSTED_NODE_ACCOUNTS names who may",
                )
            caller = await self._agents.acting_as(caller, impersonated.string_value)
        gives_up = limit.when()
        assert gives_up is not None  # noqa: S101 - it was set above
        return await self._issuer.issue(request.csr, request.validity_duration, caller, gives_up)


def _credentials(metadata: "Iterable[tuple[str, str | bytes]]") -> tuple[str, str]:
    """Return the one authorization and the one cluster id, each empty when there is none."""
    found: dict[str, str] = {}
    for key, value in metadata:
        if key in {"authorization", "clusterid"}:
            if key in found or not isinstance(value, str):
                raise UnauthenticatedError(f"more than one {key} was sent")
            found[key] = value
    return found.get("authorization", ""), found.get("clusterid", "")[:_MAX_CLUSTER_ID]
