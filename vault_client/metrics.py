"""The figures that Prometheus collects. The only user of prometheus-client."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from vault_client.errors import Cause
from vault_client.status import State, Status

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """One registry; each figure is there from the start, at zero."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        r = self._registry
        self.logins = Counter("vault_client_logins", "Logins that yielded a token", registry=r)
        self.renewals = Counter("vault_client_renewals", "Token renewals", registry=r)
        self.publishes = Counter("vault_client_publishes", "Sets put in place", registry=r)
        self._failures = Counter(
            "vault_client_failures", "Attempts that delivered nothing", ["cause"], registry=r
        )
        self._state = Gauge("vault_client_state", "1 for the present state", ["state"], registry=r)
        self._cause = Gauge("vault_client_cause", "1 for the present cause", ["cause"], registry=r)
        self._success = Gauge(
            "vault_client_last_success_timestamp_seconds",
            "When the set in place was last known to be the newest",
            registry=r,
        )
        self._published = Gauge(
            "vault_client_published_timestamp_seconds", "When the set was put in place", registry=r
        )
        self._version = Gauge("vault_client_kv_version", "KV version in place", registry=r)
        self._token = Gauge(
            "vault_client_token_expiry_timestamp_seconds",
            "When the Vault token expires; +Inf if never",
            registry=r,
        )
        self._expiry = Gauge(
            "vault_client_certificate_expiry_timestamp_seconds",
            "When the first certificate of a published file expires",
            ["file"],
            registry=r,
        )
        for cause in Cause:
            self._failures.labels(cause.value)

    def failed(self, cause: Cause) -> None:
        """Count a failed attempt."""
        self._failures.labels(cause.value).inc()

    def token_expires(self, in_seconds: float) -> None:
        """Record when the token ends."""
        self._token.set(time.time() + in_seconds)

    def observe(self, status: Status) -> None:
        """Record the present status."""
        for state in State:
            self._state.labels(state.value).set(state is status.state)
        for cause in Cause:
            self._cause.labels(cause.value).set(cause is status.cause)
        if status.last_success:
            self._success.set(status.last_success.timestamp())
        published = status.published
        self._published.set(published.published_at.timestamp() if published else 0)
        self._version.set((published.version or 0) if published else 0)
        self._expiry.clear()
        for name, expiry in status.expiries.items():
            self._expiry.labels(name).set(expiry.timestamp())

    def exposition(self) -> bytes:
        """Return all figures in Prometheus' text format."""
        return generate_latest(self._registry)
