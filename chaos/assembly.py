"""Starts the whole system: a cluster, a Vault, an HSM that fails on command, and all of ours."""

import json
import secrets
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

import grpc
from cryptography import x509

from chaos.clock import build_library, make_clock
from chaos.endpoints import is_serving
from chaos.ports import free_port
from chaos.sidecars import CA_NAME
from chaos.site import ACCOUNTS, DELIVERY, NAMESPACE, PLUGIN, TOKEN_SECONDS, WORKLOADS, Site
from chaos.supervisor import Supervised
from chaos.waiting import wait_until
from demo.processes import run
from istio_hsm_proto import kms_istio_v1_pb2 as kms
from istio_hsm_proto.kms_istio_v1_pb2_grpc import KeyManagementServiceStub
from tests.integration.istiod_ca_bridge import cluster_harness, harness
from tests.support.faults import make_faulty
from tests.support.hsm_credentials import make_credentials
from tests.support.kube import KubeCluster
from tests.support.openbao import OpenBao
from tests.support.plugin import program
from tests.support.softhsm import make_token

_KEK_ID = "chaos-kek"
_ROOT_LIFE, _CA_LIFE = timedelta(days=10 * 365), timedelta(days=2 * 365)


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
            root=harness.strict_root(_ROOT_LIFE),
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


def _make_cluster(site: Site) -> None:
    site.kube.create_namespace(NAMESPACE)
    cluster_harness.grant(site.kube, NAMESPACE)
    site.kube.create_service_account(NAMESPACE, "istiod")
    for namespace in WORKLOADS:
        site.kube.create_namespace(namespace)
        for account in ACCOUNTS:
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
        NAMESPACE, "istiod", audiences=["vault"], expiration_seconds=TOKEN_SECONDS
    )
    site.tokens.append(token)
    jwt.write_text(token)
    site.delivery_port = free_port()
    site.delivery = _supervised(
        site,
        DELIVERY,
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
    site.metrics[PLUGIN] = f"127.0.0.1:{free_port()}"
    environment = site.hsm.environment() | {
        "P11_PIN_FILE": str(site.memory / "credentials" / "pin"),
        "SOCKET": str(site.socket),
        "AUDIT_LOG": str(site.audit_log),
        "METRICS_LISTEN": site.metrics[PLUGIN],
        "HSM_PLUGIN_WATCH_CERTIFICATES": str(site.memory / "credentials" / "clientcert.pem"),
        "LOG_FORMAT": "json",
    }
    site.plugin = _supervised(
        site,
        PLUGIN,
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
        keys.GenerateKEK(kms.GenerateKEKRequest(kek_kid=_KEK_ID.encode()), timeout=10)
        keys.ImportCACert(kms.ImportCACertRequest(ca_cert_blob=site.root.pem), timeout=10)


def _start_bridge(site: Site, number: int, cleanup: ExitStack) -> None:
    name = f"bridge-{number}"
    kubeconfig = site.kube.service_account_kubeconfig(
        NAMESPACE, cluster_harness.ACCOUNT, expiration_seconds=TOKEN_SECONDS
    )
    pod = site.kube.create_pod(NAMESPACE, name)
    address, health = (f"127.0.0.1:{free_port()}" for _ in range(2))
    site.addresses.append(address)
    site.healths.append(health)
    site.metrics[name] = f"127.0.0.1:{free_port()}"
    environment = {
        "BRIDGE_STORE": "kubernetes",
        "KUBECONFIG": str(kubeconfig),
        "POD_NAMESPACE": NAMESPACE,
        "POD_NAME": name,
        "POD_UID": (pod.metadata.uid or "") if pod.metadata else "",
        "LEADER_LEASE_DURATION": "3s",
        "KEY_MANAGEMENT_ENDPOINT": str(site.socket),
        "KEY_MANAGEMENT_KEY_ID": _KEK_ID,
        "CA_KEY_ALGORITHM": "ecdsa-p256",
        "CA_LISTEN": address,
        "CA_SERVER_NAMES": CA_NAME,
        "HEALTH_LISTEN": health,
        "METRICS_LISTEN": site.metrics[name],
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
        lambda: site.exists("istio-ca-cert-csr"),
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
    site.chain = harness.signed_ca(request, site.root, lifetime=_CA_LIFE)
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
