"""SPIFFE identities as Istio forms them: spiffe://<trust domain>/ns/<namespace>/sa/<account>."""

import re
from dataclasses import dataclass

from istiod_ca_bridge.errors import InvalidIdentityError

MAX_SPIFFE_ID_BYTES = 2048
"""SPIFFE-ID, section 2.3."""

_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")
_LABEL = r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?"
_NAMESPACE = re.compile(_LABEL)
_SERVICE_ACCOUNT = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_MAX_NAMESPACE = 63
_MAX_SERVICE_ACCOUNT = 253
_ID = re.compile(r"spiffe://([^/]+)/ns/([^/]+)/sa/([^/]+)")


@dataclass(frozen=True, slots=True)
class WorkloadIdentity:
    """A service account of a namespace in a trust domain; made by the functions below only."""

    trust_domain: str
    namespace: str
    service_account: str

    def __str__(self) -> str:
        return f"spiffe://{self.trust_domain}/ns/{self.namespace}/sa/{self.service_account}"


def workload_identity(trust_domain: str, namespace: str, service_account: str) -> WorkloadIdentity:
    """Return the identity when each part is a valid name; InvalidIdentityError otherwise."""
    check_trust_domain(trust_domain)
    if len(namespace) > _MAX_NAMESPACE or not _NAMESPACE.fullmatch(namespace):
        raise InvalidIdentityError("the namespace is not a Kubernetes name")
    if len(service_account) > _MAX_SERVICE_ACCOUNT or not _SERVICE_ACCOUNT.fullmatch(
        service_account
    ):
        raise InvalidIdentityError("the service account is not a Kubernetes name")
    return WorkloadIdentity(trust_domain, namespace, service_account)


def parse_spiffe_id(uri: str) -> WorkloadIdentity:
    """Return the identity that the URI spells exactly; InvalidIdentityError otherwise."""
    match = _ID.fullmatch(uri) if len(uri) <= MAX_SPIFFE_ID_BYTES else None
    if match is None:
        raise InvalidIdentityError(
            "the URI is not of the form spiffe://<trust domain>/ns/<namespace>/sa/<account>"
        )
    return workload_identity(*match.groups())


def check_trust_domain(name: str) -> str:
    """Return the name when it is a SPIFFE trust domain (SPIFFE-ID, section 2.1)."""
    if not _TRUST_DOMAIN.fullmatch(name):
        raise InvalidIdentityError(
            "the trust domain is not a name of 1 to 255 characters a-z 0-9 . - _"
        )
    return name
