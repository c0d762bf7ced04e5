"""The figures that Prometheus collects. The only user of prometheus-client.

What happens all the time is counted as it happens; what merely is, is read when it is asked for.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from itertools import accumulate
from typing import Protocol

import grpc
from prometheus_client import CollectorRegistry, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from hsm_plugin.auditing import Auditing
from hsm_plugin.call_times import BOUNDS
from hsm_plugin.rpcs import rpc_of
from hsm_plugin.sightings import Sightings
from hsm_plugin.worker_snapshot import PinSigns

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_RPC_BUCKETS = (
    *(0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0),
)


class Gate(Protocol):
    """The queue in front of the token."""

    running_limit: int
    queue_limit: int

    @property
    def running(self) -> int:
        """Calls at the token."""

    @property
    def waiting(self) -> int:
        """Calls that wait."""


class Fuse(Protocol):
    """The breaker."""

    is_open: bool


class Deks(Protocol):
    """The DEKs that are remembered."""

    @property
    def dek_count(self) -> int:
        """How many."""


class Stock(Protocol):
    """The DEKs that were made ahead."""

    @property
    def count(self) -> int:
        """How many."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What lies ready in memory."""

    memory: Deks
    stock: Stock


@dataclass(frozen=True, slots=True)
class Present:
    """What is read at each scrape."""

    gate: Gate
    breaker: Fuse
    kept: Kept
    sightings: Sightings
    audit: Auditing | None = None


class Metrics:
    """One registry. May be read from any thread."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        build = Gauge(
            "hsm_plugin_build_info", "1, with the version", ["version"], registry=self.registry
        )
        build.labels(version("istio-hsm")).set(1)
        self._rpcs = Histogram(
            "hsm_plugin_rpc_seconds",
            "Time from a call's begin to its answer, by its status",
            ["service", "method", "code"],
            buckets=_RPC_BUCKETS,
            registry=self.registry,
        )
        self._children: dict[tuple[type, grpc.StatusCode], Histogram] = {}

    def ended(self, request: object, code: grpc.StatusCode, seconds: float) -> None:
        """Count a call that was answered."""
        key = type(request), code
        child = self._children.get(key)
        if child is None:
            rpc = rpc_of(request)
            child = self._rpcs.labels(rpc.service, rpc.method, code.name)
            self._children[key] = child
        child.observe(seconds)

    def show(self, present: Present) -> None:
        """Add what is read at each scrape."""
        self.registry.register(_PresentCollector(present))

    def exposition(self) -> bytes:
        """Return all figures in Prometheus' text format."""
        return generate_latest(self.registry)


class _PresentCollector(Collector):
    def __init__(self, present: Present) -> None:
        self._present = present

    def collect(self) -> Iterable[Metric]:
        yield from self._token()
        yield from self._sighted()
        yield from self._calls()
        yield from self._audit()

    def _token(self) -> Iterator[Metric]:
        it = self._present
        yield _gauge("token_usable", "1 while calls reach the token", not it.breaker.is_open)
        yield _gauge("breaker_open", "1 while calls are refused at once", it.breaker.is_open)
        yield _gauge("calls_at_token", "Calls at the token now", it.gate.running)
        yield _gauge("calls_at_token_limit", "Calls admitted at once", it.gate.running_limit)
        yield _gauge("queue_depth", "Calls that wait for the token", it.gate.waiting)
        yield _gauge("queue_limit", "Calls that may wait", it.gate.queue_limit)
        yield _gauge("cached_deks", "Unwrapped DEKs in memory", it.kept.memory.dek_count)
        yield _gauge("stocked_deks", "Wrapped DEKs made ahead", it.kept.stock.count)

    def _sighted(self) -> Iterator[Metric]:
        seen = self._present.sightings
        worker = seen.worker
        if worker is not None:
            yield _gauge("sessions_open", "PKCS#11 sessions that are open", worker.sessions_open)
            yield _gauge("sessions_limit", "PKCS#11 sessions allowed", worker.sessions_limit)
            yield from _pins(worker.pins)
        yield _gauge("worker_starts", "Worker processes seen since the start", seen.workers)
        keys = {"resident": seen.usable_keys, "unusable": seen.unusable_keys}
        yield _labelled(
            "signing_keys", "Signing keys: resident in the HSM, or not used", "mode", keys
        )
        yield _labelled(
            "root_expiry_timestamp_seconds", "End of an imported root", "ca_id", seen.roots
        )
        yield _labelled(
            "certificate_expiry_timestamp_seconds",
            "End of the first certificate in a watched file; 0 when it is not readable",
            "file",
            seen.certificates,
        )

    def _audit(self) -> Iterator[Metric]:
        audit = self._present.audit
        if audit is None:
            return
        log, checkpoints = audit.log, audit.checkpoints
        yield _gauge("audit_sequence", "Number of the last entry on the disk", log.head.sequence)
        yield _gauge("audit_failing", "1 while entries cannot be written", bool(log.failure))
        yield _gauge(
            "audit_unsigned_entries",
            "Entries after the last one that is signed",
            checkpoints.unsigned,
        )
        yield _gauge(
            "audit_checkpoint_timestamp_seconds",
            "When the last checkpoint was signed",
            checkpoints.signed_at,
        )
        lost = CounterMetricFamily("hsm_plugin_audit_lost", "Entries that could not be written")
        lost.add_metric([], log.lost)
        yield lost

    def _calls(self) -> Iterator[Metric]:
        times = HistogramMetricFamily(
            "hsm_plugin_pkcs11_seconds",
            "Time in a function of the PKCS#11 module",
            labels=["function"],
        )
        failures = CounterMetricFamily(
            "hsm_plugin_pkcs11_failures",
            "Answers of the PKCS#11 module other than CKR_OK",
            labels=["function", "code"],
        )
        bounds = [*map(str, BOUNDS), "+Inf"]
        for function, tally in self._present.sightings.calls().items():
            cumulated = list(zip(bounds, map(float, accumulate(tally.counts)), strict=True))
            times.add_metric([function], buckets=cumulated, sum_value=tally.seconds)
            for code, count in tally.failures.items():
                failures.add_metric([function, code], count)
        yield times
        yield failures


def _pins(pins: Mapping[str, PinSigns]) -> Iterator[Metric]:
    flags = GaugeMetricFamily(
        "hsm_plugin_pin_flag", "A token's flags about its user PIN", labels=["token", "flag"]
    )
    for token, pin in pins.items():
        flags.add_metric([token, "locked"], pin.locked)
        flags.add_metric([token, "final_try"], pin.final_try)
        flags.add_metric([token, "count_low"], pin.count_low)
    yield flags
    refused = {token: pin.refused_values for token, pin in pins.items()}
    yield _labelled("pin_refused_values", "PIN values on record as refused", "token", refused)
    pending = {token: pin.pending_values for token, pin in pins.items()}
    yield _labelled("pin_pending_values", "PIN values tried with no outcome", "token", pending)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"hsm_plugin_{name}", text, value=value)


def _labelled(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(f"hsm_plugin_{name}", text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
