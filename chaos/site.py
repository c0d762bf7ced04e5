"""The whole system on this machine, as it runs: its parts, how to reach them, and what ails it."""

import base64
import http.client
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from cryptography import x509
from kubernetes import client

from chaos.clock import SkewedClock
from chaos.endpoints import Endpoints, is_serving
from chaos.sidecars import Sidecar, Tally
from chaos.supervisor import Supervised
from tests.support import pki
from tests.support.faults import FaultyHsm
from tests.support.kube import KubeCluster
from tests.support.openbao import OpenBao

NAMESPACE = "istio-system"
CHAIN_SECRET, CHAIN_KEY = "istio-ca-cert", "cert-chain.pem"
ROOT_MAP, ROOT_KEY = "istio-ca-root-cert", "root-cert.pem"
WORKLOADS = ("bank", "shop", "travel")
ACCOUNTS = ("cart", "details", "orders")
TOKEN_SECONDS = 24 * 3600
_MISSING = 404
PLUGIN, DELIVERY = "plugin", "vault-client"


@dataclass(slots=True)
class Site:
    """Everything that runs, and how to reach it."""

    folder: Path
    """On a disk: logs that are looked at afterwards."""
    memory: Path
    ledgers: Path
    """Where issuance and audit logs are."""
    kube: KubeCluster
    bao: OpenBao
    hsm: FaultyHsm
    root: pki.Issued
    credentials: Mapping[str, str] = field(repr=False)
    clock_library: Path
    clocks: dict[str, SkewedClock] = field(default_factory=dict)
    bridges: list[Supervised] = field(default_factory=list)
    healths: list[str] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)
    metrics: dict[str, str] = field(default_factory=dict)
    """Where the plugin and the bridges serve their figures, by their names."""
    plugin: Supervised = field(init=False)
    delivery: Supervised = field(init=False)
    chain: bytes = b""
    delivery_port: int = 0
    tokens: list[str] = field(default_factory=list, repr=False)

    @property
    def core(self) -> client.CoreV1Api:
        """The API of Secrets and ConfigMaps, as an administrator."""
        return client.CoreV1Api(self.kube.admin_client())

    @property
    def ours(self) -> list[Supervised]:
        """Every process of the product."""
        return [*self.bridges, self.plugin, self.delivery]

    @property
    def ca(self) -> x509.Certificate:
        """The CA's certificate."""
        return x509.load_pem_x509_certificates(self.chain)[0]

    @property
    def socket(self) -> Path:
        """The plugin's."""
        return self.memory / "socket" / ".sock"

    @property
    def audit_log(self) -> Path:
        """The plugin's."""
        return self.ledgers / "audit.log"

    @property
    def issuance_logs(self) -> list[Path]:
        """The replicas', in their order."""
        return [self.ledgers / f"{it.name}.issued" for it in self.bridges]

    def endpoints(self) -> Endpoints:
        """Return the CA's Service."""
        return Endpoints(dict(zip(self.healths, self.addresses, strict=True)))

    def trouble(self) -> list[str]:
        """Return what is not as it should be; nothing when the whole system is sound."""
        checks: dict[str, Callable[[], bool]] = {
            it.name: partial(is_serving, health)
            for it, health in zip(self.bridges, self.healths, strict=True)
        }
        checks |= {
            PLUGIN: lambda: self.socket.exists() and is_serving(f"unix:{self.socket}"),
            DELIVERY: lambda: self._delivery_state() == "ready",
            "OpenBao": lambda: self.bao.health() == 200,  # noqa: PLR2004 - HTTP's OK
            "Secrets": self._has_secrets,
            "root certificates": self._has_roots,
        }
        return [name for name, check in checks.items() if not check()]

    def leader(self) -> int | None:
        """Return the number of the replica that holds the Lease; None while nobody does."""
        try:
            lease = client.CoordinationV1Api(self.kube.admin_client()).read_namespaced_lease(
                "istiod-ca-bridge", NAMESPACE, _request_timeout=5
            )
        except client.ApiException:
            return None
        holder = (lease.spec.holder_identity or "") if lease.spec else ""
        names = [it.name for it in self.bridges]
        name = holder.rpartition("_")[0]
        return names.index(name) if name in names else None

    def event_reasons(self) -> set[str]:
        """Return the reasons of the bridge's Events."""
        listed = client.EventsV1Api(self.kube.admin_client()).list_namespaced_event(NAMESPACE)
        return {event.reason or "" for event in listed.items}

    def write_chain(self, chain: bytes) -> None:
        """Write istio-ca-cert, whatever was there."""
        data = {CHAIN_KEY: base64.b64encode(chain).decode()}
        try:
            self.core.patch_namespaced_secret(CHAIN_SECRET, NAMESPACE, {"data": data})
        except client.ApiException as error:
            if error.status != _MISSING:
                raise
            body = client.V1Secret(metadata=client.V1ObjectMeta(name=CHAIN_SECRET), data={**data})
            self.core.create_namespaced_secret(NAMESPACE, body)

    def _has_secrets(self) -> bool:
        return all(
            self.exists(name) for name in (CHAIN_SECRET, "istio-ca-encrypted-key", "istiod-tls")
        )

    def exists(self, secret: str) -> bool:
        """Tell whether a Secret is there."""
        try:
            self.core.read_namespaced_secret(secret, NAMESPACE, _request_timeout=2)
        except Exception:  # noqa: BLE001 - whatever the driver raises: it could not be read
            return False
        return True

    def _has_roots(self) -> bool:
        try:
            return all(
                self.core.read_namespaced_config_map(ROOT_MAP, it, _request_timeout=2).data
                == {ROOT_KEY: self.root.pem.decode()}
                for it in WORKLOADS
            )
        except Exception:  # noqa: BLE001 - as above
            return False

    def _delivery_state(self) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.delivery_port, timeout=2)
        try:
            connection.request("GET", "/readyz")
            return str(json.loads(connection.getresponse().read())["state"])
        except (OSError, http.client.HTTPException, ValueError, KeyError):
            return ""
        finally:
            connection.close()


def sidecars(
    site: Site, count: int, endpoints: Endpoints, tally: Tally, pause: float, stop: threading.Event
) -> list[Sidecar]:
    """Return sidecars of as many workloads."""
    found = []
    for number in range(count):
        namespace = WORKLOADS[number % len(WORKLOADS)]
        account = ACCOUNTS[number // len(WORKLOADS) % len(ACCOUNTS)]
        token = site.kube.service_account_token(
            namespace, account, audiences=["istio-ca"], expiration_seconds=TOKEN_SECONDS
        )
        site.tokens.append(token)
        identity = f"spiffe://cluster.local/ns/{namespace}/sa/{account}"
        found.append(
            Sidecar(identity, token, site.root.pem, site.ca, endpoints, tally, pause, stop)
        )
    return found
