"""What each replica says that it serves: a fact that a rotation waits for."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from istiod_ca_bridge.chain import CaChain

_WORKER = re.compile(r"(.+)_[0-9]+")
KEY_PREFIX = "replica."
HEARD_WITHIN = timedelta(minutes=2)
"""Reports come every 20 seconds; what is older is of a replica that is cut off, or gone."""


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """One replica's CA certificate and roots, each by its SHA-256."""

    replica: str
    ca: str
    roots: frozenset[str]
    at: datetime

    def text(self) -> str:
        """Return the report as JSON."""
        return json.dumps(
            {"ca": self.ca, "roots": sorted(self.roots), "at": f"{self.at.astimezone(UTC):%FT%TZ}"}
        )


def replica_name(pod: str, worker: int) -> str:
    """Return what a process is called among the replicas; no pod's name has an underscore."""
    return f"{pod}_{worker}" if worker else pod


def pod_of(replica: str) -> str:
    """Return the pod of a replica."""
    worker = _WORKER.fullmatch(replica)
    return worker[1] if worker else replica


def report_of(replica: str, chain: CaChain, now: datetime) -> ReplicaReport:
    """Return what a replica that serves with this chain reports."""
    roots = frozenset(_digest(root) for root in chain.roots)
    return ReplicaReport(replica, _digest(chain.ca), roots, now)


def parse_report(replica: str, text: str) -> ReplicaReport:
    """Return the report; one that cannot be read is of a replica that serves nothing right."""
    try:
        body = json.loads(text)
        at = datetime.strptime(body["at"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        return ReplicaReport(replica, str(body["ca"]), frozenset(map(str, body["roots"])), at)
    except (ValueError, KeyError, TypeError, RecursionError):
        return ReplicaReport(replica, "", frozenset(), datetime.fromtimestamp(0, UTC))


def is_heard(report: ReplicaReport, now: datetime) -> bool:
    """Tell whether the replica reported lately."""
    return now - report.at <= HEARD_WITHIN


def not_trusting(
    reports: Iterable[ReplicaReport], chain: CaChain, now: datetime
) -> tuple[str, ...]:
    """Return the replicas that may answer without one of the chain's roots."""
    wanted = {_digest(root) for root in chain.roots}
    return tuple(
        _named(report, now)
        for report in reports
        if not is_heard(report, now) or not wanted <= report.roots
    )


def not_serving(reports: Iterable[ReplicaReport], chain: CaChain, now: datetime) -> tuple[str, ...]:
    """Return the replicas that may sign with another key than the chain's."""
    wanted = _digest(chain.ca)
    return tuple(
        _named(report, now)
        for report in reports
        if not is_heard(report, now) or report.ca != wanted
    )


def _named(report: ReplicaReport, now: datetime) -> str:
    silent = "" if is_heard(report, now) else f", silent since {report.at:%FT%TZ}"
    return f"replica {report.replica}{silent}"


def _digest(certificate: x509.Certificate) -> str:
    return certificate.fingerprint(hashes.SHA256()).hex()
