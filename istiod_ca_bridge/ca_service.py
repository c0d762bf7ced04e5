"""IstioCertificateService: authenticate, grant, sign, check, answer."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from istio_hsm_proto import istio_ca_pb2 as ca
from istio_hsm_proto.istio_ca_pb2_grpc import IstioCertificateServiceServicer
from istiod_ca_bridge.authn import Caller, TokenAuthenticator, caller_of_certificate
from istiod_ca_bridge.authority import Authority, new_serial
from istiod_ca_bridge.errors import (
    BridgeError,
    ForbiddenError,
    KeyServiceUnavailableError,
    NotServingError,
    OverloadedError,
    UnauthenticatedError,
)
from istiod_ca_bridge.issue import issue
from istiod_ca_bridge.log import EventLog
from istiod_ca_bridge.policy import TtlPolicy, grant_workload, granted_lifetime, requested_key
from istiod_ca_bridge.status import status_of, told
from istiod_ca_bridge.throttle import Throttle
from istiod_ca_bridge.tls_front import Peer

if TYPE_CHECKING:
    from collections.abc import Iterable

    import grpc
    from cryptography import x509

    Context = grpc.aio.ServicerContext[ca.IstioCertificateRequest, ca.IstioCertificateResponse]

_BEARER = "Bearer "
_IMPERSONATED = "ImpersonatedIdentity"
_MAX_CLUSTER_ID = 253


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """Whom the service serves, and how."""

    trust_domain: str
    cluster_id: str
    ttl: TtlPolicy
    in_flight: int = 512
    """Requests at once; more are told to come again."""

    deadline: timedelta = timedelta(seconds=10)


class CertificateService(IstioCertificateServiceServicer):
    """Answers CreateCertificate as istiod does, stricter where it costs nobody anything."""

    def __init__(
        self,
        settings: ServiceSettings,
        authority: Callable[[], Authority | None],
        peer: Callable[[str], Peer | None],
        tokens: TokenAuthenticator | None,
        clock: Callable[[], datetime],
        log: EventLog,
    ) -> None:
        self._settings = settings
        self._authority = authority
        self._peer = peer
        self._tokens = tokens
        self._clock = clock
        self._log = log
        self._in_flight = 0
        self._anyones = Throttle()

    async def CreateCertificate(
        self, request: ca.IstioCertificateRequest, context: "Context"
    ) -> ca.IstioCertificateResponse:
        """Answer the caller's certificate, leaf first, all roots last."""
        caller: Caller | None = None
        try:
            self._admit()
            self._in_flight += 1
            try:
                async with asyncio.timeout(self._settings.deadline.total_seconds()):
                    caller = await self._authenticate(context)
                    leaf, authority = await self._issue(request, caller)
            except TimeoutError:
                raise KeyServiceUnavailableError(
                    "the deadline passed before the signature"
                ) from None
            finally:
                self._in_flight -= 1
        except BridgeError as error:
            self._tell(error, caller)
            await context.abort(status_of(error), told(error))
        self._log.info(
            "certificate.issued",
            identity=str(caller.identity),
            serial=f"{leaf.serial_number:x}",
            not_after=leaf.not_valid_after_utc,
            by=caller.method.value,
            pod=caller.pod,
            pod_uid=caller.pod_uid,
        )
        return ca.IstioCertificateResponse(cert_chain=authority.answer(leaf))

    def _tell(self, error: BridgeError, caller: Caller | None) -> None:
        """Log a refusal; of those that anyone can cause, at most one a second for long."""
        left_out = 0 if caller else self._anyones.admit()
        if left_out is not None:
            self._log.warning(
                "certificate.refused",
                status=status_of(error).name,
                reason=str(error),
                hint=error.hint,
                identity=str(caller.identity) if caller else "",
                left_out=left_out,
            )

    def _admit(self) -> None:
        if self._in_flight >= self._settings.in_flight:
            raise OverloadedError("too many requests wait for a signature; try again later")

    async def _authenticate(self, context: "Context") -> Caller:
        """Return the caller by client certificate, else by token, as istiod does."""
        peer = self._peer(context.peer())
        if peer is None:
            raise UnauthenticatedError("the connection is gone")
        refusal = UnauthenticatedError("neither a client certificate nor a token was sent")
        if peer.certificate is not None:
            try:
                return caller_of_certificate(
                    peer.certificate, self._settings.trust_domain, self._clock()
                )
            except UnauthenticatedError as error:
                refusal = error
        authorization, cluster_id = _credentials(context.invocation_metadata() or ())
        if not authorization:
            raise refusal
        if cluster_id not in {"", self._settings.cluster_id}:
            raise UnauthenticatedError("the token is of a cluster that is not served here")
        if self._tokens is None:
            raise UnauthenticatedError("tokens are not accepted here")
        if not authorization.startswith(_BEARER):
            raise UnauthenticatedError("the authorization is not a bearer token")
        return await self._tokens.authenticate(authorization.removeprefix(_BEARER).strip())

    async def _issue(
        self, request: ca.IstioCertificateRequest, caller: Caller
    ) -> "tuple[x509.Certificate, Authority]":
        impersonated = request.metadata.fields.get(_IMPERSONATED)
        if impersonated is not None and impersonated.string_value:
            raise ForbiddenError("this CA lets nobody ask for another's identity")
        authority = self._authority()
        if authority is None:
            raise NotServingError("the CA has no certificate yet")
        grant = grant_workload(
            requested_key(request.csr),
            caller.identity,
            granted_lifetime(request.validity_duration, self._settings.ttl),
            now=self._clock(),
            ca_not_after=authority.not_after,
            serial=new_serial(),
        )
        return await issue(authority.issuer, grant), authority


def _credentials(metadata: "Iterable[tuple[str, str | bytes]]") -> tuple[str, str]:
    """Return the one authorization and the one cluster id, each empty when there is none."""
    found: dict[str, str] = {}
    for key, value in metadata:
        if key in {"authorization", "clusterid"}:
            if key in found or not isinstance(value, str):
                raise UnauthenticatedError(f"more than one {key} was sent")
            found[key] = value
    return found.get("authorization", ""), found.get("clusterid", "")[:_MAX_CLUSTER_ID]
