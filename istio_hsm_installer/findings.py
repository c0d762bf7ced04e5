"""What a preflight judges, and the judging itself. Pure."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime

from istio_hsm_installer.objects import Document, entries, name_of, section
from istio_hsm_installer.options import ClusterOptions, Options

MAX_SKEW = timedelta(seconds=60)
_PROTOCOLS = (
    "grpc|grpc-web|http|http2|https|mongo|mysql|redis|tcp|tls|udp"  # what Istio knows by name
)
_PORT_NAME = re.compile(rf"({_PROTOCOLS})(-[a-z0-9-]*[a-z0-9])?")
_UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "k": 1e3, "M": 1e6, "G": 1e9}
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(m|Ki|Mi|Gi|Ti|k|M|G)?")
_SHOWN = 5
ISTIO_DOCS = "https://istio.io/latest/docs"
VAULT_DOCS = "https://developer.hashicorp.com/vault/docs"
KUBERNETES_DOCS = "https://kubernetes.io/docs"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that stands in the way: why, what to do, and where it is explained."""

    group: str
    cause: str
    hint: str
    link: str


def nodes(found: Sequence[Document], wanted: ClusterOptions) -> Sequence[Finding]:
    """Return whether the nodes are too few or too small, taken together."""
    sizes = [section(node, "status", "allocatable") for node in found]
    cpus = sum(quantity(str(size.get("cpu", "0"))) for size in sizes)
    memory_gb = sum(quantity(str(size.get("memory", "0"))) for size in sizes) / 1e9
    judged = (
        (len(found) >= wanted.min_nodes, f"{len(found)} nodes, not {wanted.min_nodes}"),
        (cpus >= wanted.min_cpus, f"{cpus:g} vCPU, not {wanted.min_cpus}"),
        (memory_gb >= wanted.min_memory_gb, f"{memory_gb:.1f} GB, not {wanted.min_memory_gb}"),
    )
    return [
        Finding(
            "cluster",
            f"the cluster has {text}",
            "add nodes, or lower the minimum in the section cluster",
            f"{KUBERNETES_DOCS}/concepts/architecture/nodes/",
        )
        for is_enough, text in judged
        if not is_enough
    ]


def version(text: str, wanted: ClusterOptions) -> Sequence[Finding]:
    """Return whether the API server is too old or too new."""
    found = _minor(text)
    is_old = found < _minor(wanted.min_version)
    is_new = wanted.max_version is not None and found > _minor(wanted.max_version)
    if not is_old and not is_new:
        return []
    limit = f"older than {wanted.min_version}" if is_old else f"newer than {wanted.max_version}"
    return [
        Finding(
            "cluster",
            f"Kubernetes is {text}, {limit}",
            "install an Istio that supports it, or correct cluster.minVersion or maxVersion",
            f"{ISTIO_DOCS}/releases/supported-releases/",
        )
    ]


def ports(services: Sequence[Document]) -> Sequence[Finding]:
    """Return which ports do not say their protocol as `protocol[-suffix]`."""
    unnamed = [
        f"{metadata.get('namespace')}/{metadata.get('name')}:{port.get('port')}"
        for service in services
        if (metadata := section(service, "metadata")).get("namespace") != "kube-system"
        for port in entries(service, "spec", "ports")
        if not port.get("appProtocol") and not _PORT_NAME.fullmatch(str(port.get("name") or ""))
    ]
    if not unnamed:
        return []
    more = f" and {len(unnamed) - _SHOWN} more" if len(unnamed) > _SHOWN else ""
    return [
        Finding(
            "services",
            f"ports without protocol in their name: {', '.join(unnamed[:_SHOWN])}{more}",
            "name them protocol[-suffix], such as http-web, or set appProtocol",
            f"{ISTIO_DOCS}/ops/configuration/traffic-management/protocol-selection/",
        )
    ]


def conflicts(
    secrets: Sequence[Document], deployments: Sequence[Document], options: Options
) -> Sequence[Finding]:
    """Return what in the control plane's namespace would take the HSM's place."""
    names = {name_of(entry) for entry in secrets}
    others = sorted(
        name_of(entry) for entry in deployments if name_of(entry) != options.istiod_name
    )
    found = [
        Finding(
            "conflicts",
            f"Secret {name} holds a CA key outside the HSM, which istiod would use",
            "move it away once nothing depends on it; keep its root in the mesh's bundle",
            f"{ISTIO_DOCS}/tasks/security/cert-management/plugin-ca-cert/",
        )
        for name in ("cacerts", "istio-ca-secret")
        if name in names
    ]
    if others:
        found.append(
            Finding(
                "conflicts",
                f"another control plane is installed: {', '.join(others)}",
                "two CAs need a common root bundle: plan the migration of its namespaces",
                f"{ISTIO_DOCS}/setup/upgrade/canary/",
            )
        )
    return found


def clock(whose: str, date: str, now: datetime) -> Sequence[Finding]:
    """Return whether a server's Date header is far from our clock."""
    try:
        skew = abs(parsedate_to_datetime(date) - now)
    except (ValueError, TypeError):
        return []
    if skew <= MAX_SKEW:
        return []
    return [
        Finding(
            "clock",
            f"the clock of {whose} and ours differ by {skew.total_seconds():.0f} s",
            "synchronise both by NTP: tokens and certificates are judged by them",
            f"{KUBERNETES_DOCS}/setup/best-practices/certificates/",
        )
    ]


def quantity(text: str) -> float:
    """Return a Kubernetes quantity as a number; 0 when it is none."""
    match = _QUANTITY.fullmatch(text)
    if match is None:
        return 0.0
    number, unit = float(match[1]), match[2]
    return number / 1000 if unit == "m" else number * _UNITS.get(unit or "", 1)


def _minor(text: str) -> tuple[int, int]:
    match = re.match(r"v?(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)
