"""The bridge's page run beside a bridge that serves: its renewal, a revocation, its log."""

import base64
import json
import secrets
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from kubernetes import client

from istiod_ca_bridge.crl_bundle import lists_in
from tests.docs import operator
from tests.docs.pages import REPOSITORY, Block, blocks_of
from tests.docs.sandbox import Sandbox
from tests.integration.istiod_ca_bridge import cluster_harness, harness
from tests.integration.istiod_ca_bridge.cluster_harness import Site
from tests.support import plugin as plugins
from tests.support.kube import KubeCluster
from tests.support.softhsm import make_token

_PAGE = "docs/ca-bridge.md"
_CERTIFICATE = "istio-ca-cert"


@pytest.fixture(scope="module")
def site(kube: KubeCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("bridge")
    settings = {
        "CA_CRL": "true",
        "ISSUANCE_LOG": str(folder / "issued.log"),
        "ISSUANCE_LOG_MAX_BYTES": "4096",
    }
    namespace = f"bridge-{secrets.token_hex(4)}"
    with cluster_harness.serving_site(kube, namespace, folder, settings) as site:
        cluster_harness.grant_crl(kube, namespace)
        yield site


@pytest.fixture
def in_the_pods(sandbox: Sandbox, site: Site, with_kubectl: Path) -> Sandbox:
    """An operator's folder, with the bridge's program as it runs in the bridge's container."""
    own = " ".join(f"{name}={value}" for name, value in site.bridge.environment.items())
    program = plugins.program("istiod-ca-bridge")
    sandbox.program("istiod-ca-bridge", f'#!/bin/bash\nexec env -i {own} {program} "$@"\n')
    sandbox.program("kubectl", with_kubectl)
    sandbox.environment |= {
        "KUBECONFIG": str(site.kube.kubeconfig()),
        "SOCKET": str(site.hsm.socket),
    }
    sandbox.replaced["istio-system"] = site.namespace
    return sandbox


def served_chain(site: Site) -> bytes:
    """Return the chain that the bridge says it serves."""
    found = site.core.read_namespaced_config_map("istio-hsm-ca-status", site.namespace)
    return (found.data or {}).get("cert-chain.pem", "").encode()


@pytest.mark.timeout(120)
def test_the_next_certificate_of_the_same_key(in_the_pods: Sandbox, site: Site) -> None:
    csr = harness.decrypted_csr(site.hsm, site.bridge)
    old = harness.signed_ca(csr, site.root, lifetime=timedelta(minutes=20))
    body = {"data": {"cert-chain.pem": base64.b64encode(old).decode()}}
    site.core.patch_namespaced_secret(_CERTIFICATE, site.namespace, body)
    renewal = "metadata.name=istio-ca-cert-csr-renewal"

    def is_asked_for() -> bool:
        return bool(site.core.list_namespaced_secret(site.namespace, field_selector=renewal).items)

    site.bridge.wait_until(is_asked_for, "the CSR of the renewal")
    new = harness.signed_ca(csr, site.root)
    (in_the_pods.folder / "cert-chain.pem").write_bytes(new)
    request, conditions = blocks_of(_PAGE, "renewal")

    in_the_pods.run([request])

    asked = x509.load_pem_x509_csr((in_the_pods.folder / "csr.pem").read_bytes())
    assert asked.public_key() == csr.public_key()
    site.bridge.wait_until(lambda: served_chain(site) == new, "the new chain served")
    site.bridge.wait_until(lambda: not is_asked_for(), "the request cleared away")
    told = {entry["type"]: entry for entry in json.loads(in_the_pods.run([conditions]))}
    assert told["ChainAccepted"]["status"] == "True"


@pytest.mark.timeout(120)
def test_a_stolen_certificate_is_revoked_and_the_log_verified(
    in_the_pods: Sandbox, site: Site, namespace: str
) -> None:
    folder = in_the_pods.folder
    operator.write_root(folder, site.root)
    site.kube.create_service_account(namespace, "cart")

    def workload() -> harness.Workload:
        token = site.kube.service_account_token(namespace, "cart", audiences=["istio-ca"])
        return harness.create_certificate(site.bridge, token=token)

    stolen, others = workload(), [workload() for _ in range(12)]
    secret = site.core.read_namespaced_secret(_CERTIFICATE, site.namespace).data or {}
    (folder / "cert-chain.pem").write_bytes(base64.b64decode(secret["cert-chain.pem"]))
    for path in Path(site.bridge.environment["ISSUANCE_LOG"]).parent.glob("issued.log*"):
        (folder / path.name).symlink_to(path)
    in_the_pods.replaced |= {
        "5fa31c…": f"{stolen.leaf.serial_number:x}",
        "/ns/shop/": f"/ns/{namespace}/",
    }

    told = in_the_pods.run(
        [*blocks_of(_PAGE, "revoke"), *blocks_of("docs/disaster-recovery.md", "revoke")]
    )

    assert "revoked 1 certificates" in told
    wanted = {it.leaf.serial_number for it in (stolen, *others)}

    def are_listed() -> bool:
        selector = "metadata.name=istio-ca-crl"
        found = site.core.list_namespaced_config_map(namespace, field_selector=selector).items
        if not found or not found[0].data:
            return False
        own, of_the_root = lists_in(found[0].data["ca-crl.pem"].encode())
        assert of_the_root.issuer == site.root.certificate.subject
        return {entry.serial_number for entry in own} == wanted

    site.bridge.wait_until(are_listed, "all of the identity on the list")


@pytest.mark.timeout(120)
def test_a_ca_begins_anew_under_the_same_root_when_its_token_is_lost(
    sandbox: Sandbox, kube: KubeCluster, tmp_path: Path, with_kubectl: Path
) -> None:
    namespace = f"bridge-{secrets.token_hex(4)}"
    sandbox.program("kubectl", with_kubectl)
    sandbox.environment["KUBECONFIG"] = str(kube.kubeconfig())
    sandbox.replaced["istio-system"] = namespace
    (tmp_path / "lost").mkdir()
    (tmp_path / "anew").mkdir()
    with cluster_harness.serving_site(kube, namespace, tmp_path / "lost") as lost:
        operator.create_deployment(kube, namespace, operator.CA_NAME)
        before = a_workload(lost)
        lost.bridge.stop()
        settings = {
            name: value
            for name, value in lost.bridge.environment.items()
            if name in {"BRIDGE_STORE", "KUBECONFIG", "POD_NAMESPACE"}
        }
        spare = make_token(tmp_path / "spare")
        with plugins.running(spare, tmp_path / "plugin") as hsm:
            harness.prepare(hsm, lost.root)
            sandbox.run(blocks_of("docs/disaster-recovery.md", "lost"))
            with harness.running_bridge(tmp_path / "anew", hsm.socket, settings) as bridge:
                site = Site(kube, namespace, bridge, hsm, lost.root)
                cluster_harness.hold_ceremony(site)
                after = a_workload(site)
    assert before.chain[-1] == after.chain[-1]
    assert before.chain[1] != after.chain[1]


def a_workload(site: Site) -> harness.Workload:
    token = site.kube.service_account_token(site.namespace, "default", audiences=["istio-ca"])
    return harness.create_certificate(site.bridge, token=token)


@pytest.mark.timeout(120)
def test_what_stands_before_the_first_apply(
    sandbox: Sandbox, kube: KubeCluster, with_kubectl: Path
) -> None:
    del kube  # it says whether there can be one
    sandbox.program("kubectl", with_kubectl)
    folder = sandbox.folder
    (folder / "deploy").symlink_to(REPOSITORY / "deploy")
    (folder / "vault-ca.pem").write_text("a certificate")
    (folder / "Chrystoki.conf").write_text("Chrystoki2 = { }\n")
    (folder / "settings").write_text("P11_TOKEN=mesh\n")
    with KubeCluster() as own:
        sandbox.environment["KUBECONFIG"] = str(own.kubeconfig())
        again = "kubectl delete configmap hsm-client-config -n istio-system\n"
        sandbox.run(
            [
                *blocks_of("docs/deploy.md", "namespace"),
                Block("this test", 1, "sh", frozenset(), again),
                *blocks_of("docs/images.md", "namespace"),
            ]
        )
        core = client.CoreV1Api(own.admin_client())
        made = {
            entry.metadata.name: entry.data
            for entry in core.list_namespaced_config_map("istio-system").items
            if entry.metadata
        }
        assert made["vault-tls-cert"] == {"cert": "a certificate"}
        assert made["hsm-client-config"] == {"Chrystoki.conf": "Chrystoki2 = { }\n"}
        assert made["istio-hsm-settings"] == {"P11_TOKEN": "mesh"}
        labels = core.read_namespace("istio-system").metadata
        assert labels is not None
        assert (labels.labels or {})["pod-security.kubernetes.io/enforce"] == "restricted"
