"""The figures that Prometheus collects, istiod's own names where they fit.

The only user of prometheus-client. It appends `_total` to each counter's name; istiod's counters
have none, so theirs is taken off again on the way out.
"""

import re
import time
from collections.abc import Callable
from datetime import datetime
from enum import Enum
from functools import cache

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from istiod_ca_bridge.authority import Authority

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_ISTIODS = re.compile(rb"\b(citadel_server_\w+?)_total\b")
_FAST = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class SignError(Enum):
    """Why nothing was signed, as istiod labels it."""

    NOT_READY = "CA_NOT_READY"
    CSR = "CSR_ERROR"
    TTL = "TTL_ERROR"
    OTHER = "CERT_GEN_ERROR"


class State(Enum):
    """How far the CA is."""

    WAITING = "waiting"
    """There is no certificate to serve with yet."""

    SERVING = "serving"


class Metrics:
    """One registry; each figure is there from the start."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # untyped there
        r = self._registry = CollectorRegistry()
        ProcessCollector(registry=r)
        self.csrs = Counter("citadel_server_csr_count", "CSRs received", registry=r)
        self.issued = Counter(
            "citadel_server_success_cert_issuance_count", "Certificates issued", registry=r
        )
        self.unauthenticated = Counter(
            "citadel_server_authentication_failure_count",
            "Callers that did not prove who they are, or may not have what they ask for",
            registry=r,
        )
        self.bad_csrs = Counter(
            "citadel_server_csr_parsing_err_count", "CSRs that were refused", registry=r
        )
        self._sign_errors = Counter(
            "citadel_server_csr_sign_err_count",
            "Requests of known callers that ended without a certificate",
            ["error"],
            registry=r,
        )
        self._root_expiry = _gauge("citadel_server_root_cert_expiry", "the first root expires", r)
        self._chain_expiry = _gauge("citadel_server_cert_chain_expiry", "the CA expires", r)
        requests = Counter(
            "istiod_ca_bridge_requests",
            "Requests answered, by gRPC status and how the caller proved itself",
            ["status", "by"],
            registry=r,
        )
        self._requests_of = cache(requests.labels)
        request_seconds = Histogram(
            "istiod_ca_bridge_request_seconds",
            "From a request to its certificate",
            ["by"],
            buckets=_FAST,
            registry=r,
        )
        self._request_seconds_of = cache(request_seconds.labels)
        self.signature_seconds = Histogram(
            "istiod_ca_bridge_signature_seconds",
            "From a digest to its signature by the CA key",
            buckets=_FAST,
            registry=r,
        )
        self.signature_failures = Counter(
            "istiod_ca_bridge_signature_failures",
            "Signatures that the CA key did not give",
            registry=r,
        )
        self.queue_length = Gauge(
            "istiod_ca_bridge_queue_length", "Requests that wait for a signature", registry=r
        )
        self.queue_seconds = Histogram(
            "istiod_ca_bridge_queue_seconds",
            "How long those waited that had to",
            buckets=_FAST,
            registry=r,
        )
        self.queue_refused = Counter(
            "istiod_ca_bridge_queue_refused",
            "Requests that were told to come again because too many waited",
            registry=r,
        )
        self.in_flight = Gauge(
            "istiod_ca_bridge_requests_in_flight", "Requests under way", registry=r
        )
        self.connections = Gauge(
            "istiod_ca_bridge_connections", "TLS connections, handshakes included", registry=r
        )
        self.ready = Gauge(
            "istiod_ca_bridge_ready", "1 when the CA key signed a probe just now", registry=r
        )
        self.leader = Gauge(
            "istiod_ca_bridge_leader", "1 on the replica that may write: it leads", registry=r
        )
        self._state = Gauge(
            "istiod_ca_bridge_lifecycle_state", "1 for the present state", ["state"], registry=r
        )
        self._expiry = Gauge(
            "istiod_ca_bridge_certificate_expiry_timestamp_seconds",
            "When the first certificate of a kind that is served with expires",
            ["certificate"],
            registry=r,
        )
        self._issuer_crl_end = Gauge(
            "istiod_ca_bridge_issuer_crl_end_timestamp_seconds",
            "When the first of the operator's revocation lists ends; 0: there is none",
            registry=r,
        )
        self._conditions = Gauge(
            "istiod_ca_bridge_condition",
            "1 when a condition is True, 0 when it is False; its reason is in the status ConfigMap",
            ["type"],
            registry=r,
        )
        self.told = Counter(
            "istiod_ca_bridge_events",
            "What was told as a Kubernetes Event, or will be when the API server is back",
            ["reason"],
            registry=r,
        )
        self.logged = Counter(
            "istiod_ca_bridge_issuance_log_entries", "Certificates in the issuance log", registry=r
        )
        self.log_failures = Counter(
            "istiod_ca_bridge_issuance_log_failures",
            "Attempts to write the issuance log that failed",
            registry=r,
        )
        self.log_seconds = Histogram(
            "istiod_ca_bridge_issuance_log_commit_seconds",
            "How long it takes to write and sync a group of entries",
            buckets=_FAST,
            registry=r,
        )
        self.reviews = Counter(
            "istiod_ca_bridge_token_reviews",
            "Tokens that the API server was asked about",
            ["outcome"],
            registry=r,
        )
        self.token_cache = Counter(
            "istiod_ca_bridge_token_cache",
            "How tokens were judged: asked, together with another request, or remembered",
            ["result"],
            registry=r,
        )
        for error in SignError:
            self._sign_errors.labels(error.value)
        for outcome in ("accepted", "refused", "unavailable"):
            self.reviews.labels(outcome)
        for result in ("asked", "shared", "remembered"):
            self.token_cache.labels(result)
        self.state(State.WAITING)

    def answered(self, status: str, by: str, seconds: float) -> None:
        """Record a request's end."""
        self._requests_of(status, by).inc()
        if status == "OK":
            self._request_seconds_of(by).observe(seconds)

    def not_signed(self, why: SignError) -> None:
        """Count a known caller's request that ended without a certificate."""
        self._sign_errors.labels(why.value).inc()

    def condition(self, kind: str, *, holds: bool) -> None:
        """Record whether a condition is True."""
        self._conditions.labels(kind).set(holds)

    def issuer_crl_ends(self, at: datetime | None) -> None:
        """Record when the first of the lists ends that the operator wrote."""
        self._issuer_crl_end.set(0 if at is None else at.timestamp())

    def state(self, state: State) -> None:
        """Record how far the CA is."""
        for each in State:
            self._state.labels(each.value).set(each is state)

    def serves(self, authority: Authority, server_not_after: datetime | None = None) -> None:
        """Record what is served with from now on; without a server where no agent comes."""
        chain = authority.chain
        self._root_expiry(chain.roots[0].not_valid_after_utc)
        self._chain_expiry(chain.ca.not_valid_after_utc)
        kinds = {
            "ca": chain.ca.not_valid_after_utc,
            "root": min(entry.not_valid_after_utc for entry in chain.roots),
            "path": chain.not_after,
        } | ({} if server_not_after is None else {"server": server_not_after})
        for kind, not_after in kinds.items():
            self._expiry.labels(kind).set(not_after.timestamp())
        self.state(State.SERVING)

    def exposition(self) -> bytes:
        """Return all figures in Prometheus' text format."""
        return _ISTIODS.sub(rb"\1", generate_latest(self._registry))


def _gauge(name: str, when: str, registry: CollectorRegistry) -> Callable[[datetime], None]:
    """Return what sets istiod's pair of gauges: when something expires, and in how long."""
    timestamp = Gauge(f"{name}_timestamp", f"Unix time at which {when}", registry=registry)
    seconds = Gauge(f"{name}_seconds", f"Seconds until {when}", registry=registry)

    def expires(at: datetime) -> None:
        timestamp.set(at.timestamp())
        seconds.set_function(lambda: at.timestamp() - time.time())

    return expires
