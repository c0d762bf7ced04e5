"""CertificateSigningRequests (certificates.k8s.io/v1): the open ones, and their answers."""

import base64
import binascii
import copy
import functools
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from kubernetes import client

from istiod_ca_bridge.errors import AnsweredElsewhereError
from istiod_ca_bridge.kube_client import FAILURES, TIMEOUT_SECONDS, Cluster, unavailable
from istiod_ca_bridge.kube_watch import watched
from istiod_ca_bridge.observed import Change
from istiod_ca_bridge.signing_request import Requests, SigningRequest

_KIND = "certificatesigningrequests"
_LIFETIME = "experimental.cert-manager.io/request-duration"
"""The annotation in which istiod says the lifetime: a Go duration."""

_DURATION = re.compile(
    r"(?=.)(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})(?:\.\d{1,9})?s)?", re.ASCII
)
_MAX_SECONDS = (1 << 31) - 1
"""expirationSeconds is an int32."""

_GONE = {404, 409}
_MAX_MESSAGE = 1000
_CLOSED = {"Denied", "Failed"}


class KubernetesSigningRequests:
    """Reads by list and watch, answers by an update of the state that was read."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._certificates = client.CertificatesV1Api(cluster.api)

    def open(self, signer: str) -> Requests:
        """Yield the approved, unanswered requests to a signer."""
        request = functools.partial(
            self._certificates.list_certificate_signing_request,
            field_selector=f"spec.signerName={signer}",
        )
        return watched(_KIND, request, functools.partial(_change, signer))

    async def issue(self, request: SigningRequest, chain_pem: str) -> None:
        """Answer with a certificate and its intermediates."""
        certificate = base64.b64encode(chain_pem.encode()).decode()
        await self._answer(request, {"certificate": certificate})

    async def fail(self, request: SigningRequest, reason: str, message: str) -> None:
        """Answer that this request is never signed."""
        condition = {
            "type": "Failed",
            "status": "True",
            "reason": reason,
            "message": message[:_MAX_MESSAGE],
            "lastUpdateTime": f"{datetime.now(UTC):%FT%TZ}",
        }
        document: Any = request.document
        conditions = (document.get("status") or {}).get("conditions") or []
        await self._answer(request, {"conditions": [*conditions, condition]})

    async def _answer(self, request: SigningRequest, change: Mapping[str, object]) -> None:
        """Update the status; the resourceVersion in the document lets one writer win."""
        body: Any = copy.copy(request.document)
        body["status"] = {**(body.get("status") or {}), **change}
        try:
            await self._cluster.call(
                functools.partial(
                    self._certificates.replace_certificate_signing_request_status,
                    request.name,
                    body,
                    _preload_content=False,
                    _request_timeout=TIMEOUT_SECONDS,
                )
            )
        except FAILURES as error:
            if getattr(error, "status", None) in _GONE:
                raise AnsweredElsewhereError(f"{request.name} was changed by another") from None
            what = f"{_KIND}/status, and sign on signers {request.signer}"
            raise unavailable("update", what, error) from None


def _change(signer: str, body: dict[str, Any]) -> Change[SigningRequest]:
    name: str = body["metadata"]["name"]
    spec, status = body["spec"], body.get("status") or {}
    held = {
        condition["type"]
        for condition in status.get("conditions") or ()
        if condition.get("status", "True") == "True"
    }
    is_open = (
        spec["signerName"] == signer
        and "Approved" in held
        and not held & _CLOSED
        and not status.get("certificate")
        and not body["metadata"].get("deletionTimestamp")
    )
    if not is_open:
        return Change(name, None)
    body.setdefault("apiVersion", "certificates.k8s.io/v1")
    body.setdefault("kind", "CertificateSigningRequest")
    request = SigningRequest(
        name=name,
        version=body["metadata"]["resourceVersion"],
        signer=signer,
        requestor=spec.get("username", ""),
        csr_pem=_csr(spec.get("request", "")),
        usages=frozenset(spec.get("usages") or ()),
        lifetime=_lifetime(spec, body["metadata"].get("annotations") or {}),
        document=body,
    )
    return Change(name, request)


def _csr(encoded: str) -> str:
    """Return the PEM; what cannot be read is empty, which is refused as such."""
    try:
        return base64.b64decode(encoded, validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        return ""


def _lifetime(spec: Mapping[str, Any], annotations: Mapping[str, str]) -> timedelta | None:
    """Return the API's own field, else what istiod writes down."""
    seconds = spec.get("expirationSeconds")
    if isinstance(seconds, int):
        return timedelta(seconds=min(max(seconds, 0), _MAX_SECONDS))
    match = _DURATION.fullmatch(annotations.get(_LIFETIME, ""))
    if match is None:
        return None
    hours, minutes, rest = (min(int(part or 0), 10**6) for part in match.groups())
    return timedelta(hours=hours, minutes=minutes, seconds=rest)
