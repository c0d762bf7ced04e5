"""The ingress gateway's Service: an address of its own, or a table for a manual balancer. Pure."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from istio_hsm_installer.errors import InputError
from istio_hsm_installer.objects import Document, entries, section


@dataclass(frozen=True, slots=True)
class Forward:
    """One rule of a manual balancer: from its port to this port of any node."""

    name: str
    port: int
    node_port: int
    targets: Sequence[str]


def address(text: str) -> str:
    """Return the IP address; InputError when it is none."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise InputError(f"{text!r} is no IP address", hint="write such as 203.0.113.1") from None


def forwards(service: Document, nodes: Sequence[Document]) -> Sequence[Forward]:
    """Return the rules; InputError when the Service has no node ports."""
    addresses = [
        str(entry.get("address"))
        for node in nodes
        for entry in entries(node, "status", "addresses")
        if entry.get("type") == "InternalIP"
    ]
    found = [
        Forward(
            str(entry.get("name", "")),
            port,
            node_port,
            [_joined(host, node_port) for host in addresses],
        )
        for entry in entries(service, "spec", "ports")
        if isinstance(port := entry.get("port"), int)
        and isinstance(node_port := entry.get("nodePort"), int)
    ]
    if not found:
        kind = section(service, "spec").get("type", "ClusterIP")
        raise InputError(
            f"the gateway's Service is of type {kind} and has no node ports",
            hint="set its type to NodePort or LoadBalancer",
        )
    return found


def given(service: Document) -> Sequence[str]:
    """Return the addresses that the balancer has given to the Service."""
    return [
        str(entry.get("ip") or entry.get("hostname"))
        for entry in entries(service, "status", "loadBalancer", "ingress")
    ]


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
