"""A Kubernetes CertificateSigningRequest -> grant, or a refusal that says why.

Approval says that a name may be had; who may ask at all, for which usages and names, and for how
long is decided here. From the CSR come the public key and the one name that was approved.
"""

import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from cryptography import x509

from istiod_ca_bridge.der import MALFORMED
from istiod_ca_bridge.errors import ForbiddenError, InvalidIdentityError, RefusedRequestError
from istiod_ca_bridge.identity import WorkloadIdentity, parse_spiffe_id
from istiod_ca_bridge.observed import Change, Listing
from istiod_ca_bridge.policy import Grant, TtlPolicy, grant_server, grant_workload, requested_key

USAGES = frozenset({"digital signature", "key encipherment", "server auth", "client auth"})
"""What every certificate of a mesh says, and what istiod asks for."""

_ACCOUNT = re.compile(r"([a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?)/([a-z0-9](?:[-.a-z0-9]*[a-z0-9])?)")
_ISTIOD_SERVICES = ("istiod-remote", "istio-pilot")
"""istiod's further names, which each revision asks for."""


@dataclass(frozen=True, slots=True)
class SigningRequest:
    """A request that was approved for a signer of ours and has no answer yet."""

    name: str
    version: str
    """Which state of it was seen; an answer to another state is no answer."""

    signer: str
    requestor: str
    """User name, as the API server authenticated it."""

    csr_pem: str = field(repr=False)
    usages: frozenset[str]
    lifetime: timedelta | None
    """None when none was asked for."""

    document: object = field(repr=False, compare=False)
    """The request as its source needs it for the answer."""


@dataclass(frozen=True, slots=True)
class SigningPolicy:
    """Whose requests are signed, and which names they may have."""

    requestors: frozenset[str]
    trust_domains: frozenset[str]
    dns_names: frozenset[str]
    """istiod's own, for the certificate that it serves with."""

    ttl: TtlPolicy


Requests = AsyncGenerator[Listing[SigningRequest] | Change[SigningRequest], None]
"""One listing, then changes, by name. It ends when it is time to list again."""


class SigningRequests(Protocol):
    """The requests of a cluster."""

    def open(self, signer: str) -> Requests:
        """Yield the requests to a signer that are approved and not answered.

        ClusterUnavailableError when the API server is away or does not let us.
        """
        ...

    async def issue(self, request: SigningRequest, chain_pem: str) -> None:
        """Answer with a certificate and its intermediates.

        AnsweredElsewhereError when it has changed since, else ClusterUnavailableError.
        """
        ...

    async def fail(self, request: SigningRequest, reason: str, message: str) -> None:
        """Answer that this request is never signed; the same errors."""
        ...


def user_name(account: str) -> str:
    """Return the user name of `<namespace>/<service account>`; ValueError when it is none."""
    match = _ACCOUNT.fullmatch(account)
    if match is None:
        raise ValueError(f"{account!r} is not <namespace>/<service account>")
    return f"system:serviceaccount:{match[1]}:{match[2]}"


def istiod_dns_names(namespace: str, services: tuple[str, ...]) -> frozenset[str]:
    """Return each name that an istiod asks a certificate for, given its Services."""
    return frozenset({*services, *(f"{name}.{namespace}.svc" for name in _ISTIOD_SERVICES)})


def grant_request(
    request: SigningRequest,
    policy: SigningPolicy,
    *,
    now: datetime,
    ca_not_after: datetime,
    serial: int,
) -> Grant:
    """Return what the request gets; ForbiddenError or RefusedRequestError when nothing, ever."""
    if request.requestor not in policy.requestors:
        raise ForbiddenError(f"{request.requestor} may not ask for certificates of the mesh")
    if request.usages != USAGES:
        raise RefusedRequestError(
            f"the usages are not those of a certificate of the mesh: {', '.join(sorted(USAGES))}"
        )
    key = requested_key(request.csr_pem)
    name = _name(request.csr_pem, policy)
    lifetime = granted(request.lifetime, policy.ttl)
    if isinstance(name, WorkloadIdentity):
        return grant_workload(
            key, name, lifetime, now=now, ca_not_after=ca_not_after, serial=serial
        )
    return grant_server(key, name, lifetime, now=now, ca_not_after=ca_not_after, serial=serial)


def granted(requested: timedelta | None, policy: TtlPolicy) -> timedelta:
    """Return the lifetime: what was asked for, never over the maximum."""
    if requested is None or requested <= timedelta(0):
        return policy.default
    return min(requested, policy.maximum)


def _name(csr_pem: str, policy: SigningPolicy) -> WorkloadIdentity | tuple[str, ...]:
    """Return the workload, or the DNS names of an istiod, that the CSR asks for."""
    names = _asked_for(csr_pem)
    uris = [entry.value for entry in names if isinstance(entry, x509.UniformResourceIdentifier)]
    dns = [entry.value for entry in names if isinstance(entry, x509.DNSName)]
    if len(uris) == len(names) == 1:
        try:
            identity = parse_spiffe_id(uris[0])
        except InvalidIdentityError as error:
            raise RefusedRequestError(f"the CSR's name is not a workload's: {error}") from None
        if identity.trust_domain not in policy.trust_domains:
            raise ForbiddenError(f"trust domain {identity.trust_domain} is not of this mesh")
        return identity
    if names and len(dns) == len(names):
        if not policy.dns_names.issuperset(dns):
            raise ForbiddenError("the CSR asks for DNS names that are not istiod's")
        return tuple(dict.fromkeys(dns))
    raise RefusedRequestError(
        "the CSR asks for neither exactly one SPIFFE URI nor DNS names of istiod alone"
    )


def _asked_for(csr_pem: str) -> list[x509.GeneralName]:
    try:
        extensions = x509.load_pem_x509_csr(csr_pem.strip().encode("ascii")).extensions
        return list(extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return []
    except MALFORMED:
        raise RefusedRequestError("the CSR's names are malformed") from None
