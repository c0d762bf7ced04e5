"""The whole system on this machine: a cluster, a Vault, an HSM that fails on command, and ours."""

import base64
import http.client
import json
import random
import secrets
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import grpc
from cryptography import x509
from kubernetes import client

from chaos.clock import SkewedClock, build_library, make_clock
from chaos.endpoints import Endpoints, is_serving
from chaos.sidecars import CA_NAME, Sidecar, Tally
from chaos.supervisor import Supervised
from chaos.waiting import wait_until
from demo.processes import run
from istio_hsm_proto import kms_istio_v1_pb2 as kms
from istio_hsm_proto.kms_istio_v1_pb2_grpc import KeyManagementServiceStub
from tests.integration.istiod_ca_bridge import cluster_harness, harness
from tests.support import pki
from tests.support.faults import FaultyHsm, make_faulty
from tests.support.hsm_credentials import make_credentials
from tests.support.kube import KubeCluster
from tests.support.openbao import OpenBao
from tests.support.plugin import program
from tests.support.softhsm import make_token

NAMESPACE = "istio-system"
KEK_ID = "chaos-kek"
CHAIN_SECRET, CHAIN_KEY = "istio-ca-cert", "cert-chain.pem"
ROOT_MAP, ROOT_KEY = "istio-ca-root-cert", "root-cert.pem"
WORKLOADS = ("bank", "shop", "travel")
_ACCOUNTS = ("cart", "details", "orders")
_TOKEN_SECONDS = 24 * 3600
# Below the ports that the kernel gives to outgoing connections: those could take one meanwhile.
_PORTS = range(12000, 19000)
_MISSING = 404
_PLUGIN, _DELIVERY = "plugin", "vault-client"


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
            _PLUGIN: lambda: self.socket.exists() and is_serving(f"unix:{self.socket}"),
            _DELIVERY: lambda: self._delivery_state() == "ready",
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
            self._exists(name) for name in (CHAIN_SECRET, "istio-ca-encrypted-key", "istiod-tls")
        )

    def _exists(self, secret: str) -> bool:
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


@contextmanager
def running(folder: Path, memory: Path, ledgers: Path, replicas: int) -> Iterator[Site]:
    """Yield the system after the ceremony, every part serving; each process ends with it."""
    with ExitStack() as cleanup:
        kube = cleanup.enter_context(KubeCluster())
        bao = OpenBao(folder / "bao", port=free_port())
        cleanup.callback(bao.kill)
        bao.start()
        pin = str(secrets.randbelow(10**15)).zfill(15)
        token = make_token(memory / "token", pin=pin)
        token.pin_file.unlink()  # the vault client brings it
        site = Site(
            folder=folder,
            memory=memory,
            ledgers=ledgers,
            kube=kube,
            bao=bao,
            hsm=make_faulty(token),
            root=harness.strict_root(),
            credentials={**make_credentials(), "PIN": pin},
            clock_library=build_library(folder),
        )
        cleanup.callback(site.hsm.heal)
        _make_cluster(site)
        _make_vault(site)
        _start_delivery(site, cleanup)
        _start_plugin(site, cleanup)
        for number in range(1, replicas + 1):
            _start_bridge(site, number, cleanup)
            if number == 1:
                _hold_ceremony(site)
        wait_until(lambda: not site.trouble(), lambda: f"a sound system: {site.trouble()}")
        yield site


def sidecars(
    site: Site, count: int, endpoints: Endpoints, tally: Tally, pause: float, stop: threading.Event
) -> list[Sidecar]:
    """Return sidecars of as many workloads."""
    found = []
    for number in range(count):
        namespace = WORKLOADS[number % len(WORKLOADS)]
        account = _ACCOUNTS[number // len(WORKLOADS) % len(_ACCOUNTS)]
        token = site.kube.service_account_token(
            namespace, account, audiences=["istio-ca"], expiration_seconds=_TOKEN_SECONDS
        )
        site.tokens.append(token)
        identity = f"spiffe://cluster.local/ns/{namespace}/sa/{account}"
        found.append(
            Sidecar(identity, token, site.root.pem, site.ca, endpoints, tally, pause, stop)
        )
    return found


def free_port() -> int:
    """Return a loopback port that nothing listens on now and no outgoing connection gets."""
    for port in random.sample(_PORTS, k=len(_PORTS)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise RuntimeError(f"no free port in {_PORTS}")


def _make_cluster(site: Site) -> None:
    site.kube.create_namespace(NAMESPACE)
    cluster_harness.grant(site.kube, NAMESPACE)
    site.kube.create_service_account(NAMESPACE, "istiod")
    for namespace in WORKLOADS:
        site.kube.create_namespace(namespace)
        for account in _ACCOUNTS:
            site.kube.create_service_account(namespace, account)


def _make_vault(site: Site) -> None:
    """Store the credentials as the guide lays them out, behind Kubernetes auth."""
    site.bao.write("sys/auth/mesh/hsm", {"type": "kubernetes"})
    site.bao.write(
        "auth/mesh/hsm/config",
        {
            "kubernetes_host": site.kube.server,
            "kubernetes_ca_cert": site.kube.ca_pem,
            "token_reviewer_jwt": site.kube.reviewer_token(NAMESPACE),
        },
    )
    site.bao.write(
        "auth/mesh/hsm/role/istiod",
        {
            "bound_service_account_names": ["istiod"],
            "bound_service_account_namespaces": [NAMESPACE],
            "audience": "vault",
            "policies": ["mesh"],
            "ttl": "1h",
        },
    )
    site.bao.enable_kv("mesh", 2)
    site.bao.allow("mesh", {"mesh/data/istiod": "read"})
    site.bao.put_v2("mesh", "istiod", site.credentials)


def _start_delivery(site: Site, cleanup: ExitStack) -> None:
    output = site.memory / "credentials"
    output.mkdir(mode=0o700)
    jwt = site.memory / "jwt"
    jwt.touch(0o600)
    token = site.kube.service_account_token(
        NAMESPACE, "istiod", audiences=["vault"], expiration_seconds=_TOKEN_SECONDS
    )
    site.tokens.append(token)
    jwt.write_text(token)
    site.delivery_port = free_port()
    site.delivery = _supervised(
        site,
        _DELIVERY,
        [program("vault-client")],
        {
            "VAULT_ADDR": site.bao.address,
            "VAULT_CACERT": str(site.bao.ca_file),
            "VAULT_AUTH_PATH": "auth/mesh/hsm/login",
            "VAULT_AUTH_AUDIENCE": "vault",
            "VAULT_ROLE": "istiod",
            "VAULT_AUTH_JWT_PATH": str(jwt),
            "VAULT_KV_PATH": "mesh/istiod",
            "OUTPUT_DIR": str(output),
            "POLL_INTERVAL": "1s",
            "RETRY_MAX_INTERVAL": "2s",
            "HEALTH_ADDR": f"127.0.0.1:{site.delivery_port}",
            "HSM_PLUGIN_SOCKET": str(site.socket),
            "LOG_FORMAT": "json",
        },
        cleanup,
    )
    wait_until((output / "pin").exists, lambda: f"the PIN; see {site.delivery.log}")


def _start_plugin(site: Site, cleanup: ExitStack) -> None:
    site.socket.parent.mkdir(mode=0o700)
    environment = site.hsm.environment() | {
        "P11_PIN_FILE": str(site.memory / "credentials" / "pin"),
        "SOCKET": str(site.socket),
        "AUDIT_LOG": str(site.audit_log),
        "LOG_FORMAT": "json",
    }
    site.plugin = _supervised(
        site,
        _PLUGIN,
        [program("hsm-plugin"), "serve", "--hang-limit", "2s", "--sessions", "4"],
        environment,
        cleanup,
    )
    wait_until(
        lambda: site.socket.exists() and is_serving(f"unix:{site.socket}"),
        lambda: f"the plugin; see {site.plugin.log}",
    )
    with grpc.insecure_channel(f"unix:{site.socket}") as channel:
        keys = KeyManagementServiceStub(channel)
        keys.GenerateKEK(kms.GenerateKEKRequest(kek_kid=KEK_ID.encode()), timeout=10)
        keys.ImportCACert(kms.ImportCACertRequest(ca_cert_blob=site.root.pem), timeout=10)


def _start_bridge(site: Site, number: int, cleanup: ExitStack) -> None:
    name = f"bridge-{number}"
    kubeconfig = site.kube.service_account_kubeconfig(
        NAMESPACE, cluster_harness.ACCOUNT, expiration_seconds=_TOKEN_SECONDS
    )
    pod = site.kube.create_pod(NAMESPACE, name)
    address, health = (f"127.0.0.1:{free_port()}" for _ in range(2))
    site.addresses.append(address)
    site.healths.append(health)
    environment = {
        "BRIDGE_STORE": "kubernetes",
        "KUBECONFIG": str(kubeconfig),
        "POD_NAMESPACE": NAMESPACE,
        "POD_NAME": name,
        "POD_UID": (pod.metadata.uid or "") if pod.metadata else "",
        "LEADER_LEASE_DURATION": "3s",
        "KEY_MANAGEMENT_ENDPOINT": str(site.socket),
        "KEY_MANAGEMENT_KEY_ID": KEK_ID,
        "CA_KEY_ALGORITHM": "ecdsa-p256",
        "CA_LISTEN": address,
        "CA_SERVER_NAMES": CA_NAME,
        "HEALTH_LISTEN": health,
        "TOKEN_REVIEW_CACHE": "2s",
        "ISSUANCE_LOG": str(site.ledgers / f"{name}.issued"),
        "ISSUANCE_LOG_CHECKPOINT": "50",
        "ISSUANCE_LOG_MAX_BYTES": "131072",
        "DRAIN_DELAY": "2s",
        "DRAIN_DURATION": "3s",
        "LOG_FORMAT": "json",
    }
    site.bridges.append(
        _supervised(site, name, [program("istiod-ca-bridge"), "serve"], environment, cleanup)
    )


def _hold_ceremony(site: Site) -> None:
    """Sign the first replica's CSR as the offline root does."""
    wait_until(
        lambda: site._exists("istio-ca-cert-csr"),  # noqa: SLF001 - of this module
        lambda: f"a CSR; see {site.bridges[0].log}",
    )
    sealed, csr = site.folder / "csr.json", site.folder / "csr.pem"
    secret = site.core.read_namespaced_secret("istio-ca-cert-csr", NAMESPACE)
    sealed.write_text(json.dumps(secret.data))
    run(
        [program("hsm-plugin"), "decrypt-csr", "-f", str(sealed), "-o", str(csr)],
        {"SOCKET": str(site.socket)},
    )
    request = x509.load_pem_x509_csr(csr.read_bytes())
    site.chain = harness.signed_ca(request, site.root)
    site.write_chain(site.chain)


def _supervised(
    site: Site,
    name: str,
    command: list[str],
    environment: Mapping[str, str],
    cleanup: ExitStack,
) -> Supervised:
    """Start a process of the product that lives by a clock of its own."""
    clock = site.clocks[name] = make_clock(site.clock_library, site.memory / f"{name}.clock")
    process = Supervised(
        name, command, {**environment, **clock.environment()}, site.folder / f"{name}.log"
    )
    cleanup.callback(process.stop)
    process.start()
    return process
