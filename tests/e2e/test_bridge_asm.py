"""An installation of the guide is taken over with its Secrets, and handed back."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from kubernetes import client

from istio_hsm_proto import kms_istio_v1_pb2 as kms
from tests.e2e import guide_istiod
from tests.e2e.guide_istiod import CERTIFICATE, CSR, KEY
from tests.integration.istiod_ca_bridge import cluster_harness, harness
from tests.support import pki, plugin, vectors
from tests.support.kube import KubeCluster

REFERENCE = vectors.interop()


@pytest.fixture(scope="module")
def root() -> pki.Issued:
    return harness.strict_root()


@pytest.fixture(scope="module")
def hsm(tmp_path_factory: pytest.TempPathFactory, root: pki.Issued) -> Iterator[plugin.Plugin]:
    """Our plugin on the token that the reference plugin left, with the operator's root."""
    folder = tmp_path_factory.mktemp("reference")
    with plugin.running(vectors.reference_token(folder / "token"), folder / "plugin") as running:
        with running.keys() as keys:
            keys.ImportCACert(kms.ImportCACertRequest(ca_cert_blob=root.pem), timeout=10)
        yield running


@pytest.fixture
def core(kube: KubeCluster) -> client.CoreV1Api:
    return client.CoreV1Api(kube.admin_client())


@pytest.fixture
def site(kube: KubeCluster) -> Iterator[str]:
    """A namespace where the bridge has the documented rights."""
    name = f"bridge-{secrets.token_hex(4)}"
    kube.create_namespace(name)
    cluster_harness.grant(kube, name)
    yield name
    cluster_harness.revoke(kube, name)


@contextmanager
def bridge_of(
    kube: KubeCluster, namespace: str, hsm: plugin.Plugin, folder: Path
) -> Iterator[harness.Bridge]:
    account = cluster_harness.ACCOUNT
    settings = {
        "BRIDGE_MODE": "asm",
        "BRIDGE_STORE": "kubernetes",
        "KUBECONFIG": str(kube.service_account_kubeconfig(namespace, account)),
        "POD_NAMESPACE": namespace,
        "KEY_MANAGEMENT_KEY_ID": REFERENCE.kek_id.decode(),
        "CA_SERVER_NAMES": "istiod.istio-system.svc",
    }
    with harness.running_bridge(folder, hsm.socket, settings) as bridge:
        yield bridge


def versions(core: client.CoreV1Api, namespace: str) -> dict[str, str | None]:
    """Return which state of each of the guide's Secrets is there."""
    found = {name: core.read_namespaced_secret(name, namespace).metadata for name in (KEY, CSR)}
    return {name: it.resource_version if it else None for name, it in found.items()}


def test_a_waiting_installation_is_taken_over_with_its_key_and_csr_and_handed_back(
    kube: KubeCluster,
    core: client.CoreV1Api,
    site: str,
    hsm: plugin.Plugin,
    root: pki.Issued,
    tmp_path: Path,
) -> None:
    for name, values in guide_istiod.reference_secrets().items():
        guide_istiod.write(core, site, name, values)
    before = versions(core, site)
    references_key = serialization.load_pem_private_key(REFERENCE.skey_pem, None).public_key()

    with bridge_of(kube, site, hsm, tmp_path) as bridge:
        bridge.await_log(f"Wait until the CA certificate secret {site}.istio-ca-cert can be loaded")
        csr = guide_istiod.decrypted_csr(hsm, guide_istiod.read(core, site, CSR))
        chain = harness.signed_ca(csr, root)
        guide_istiod.write(core, site, CERTIFICATE, {"cert-chain.pem": chain})
        bridge.await_serving()
        token = kube.service_account_token(site, "default", audiences=["istio-ca"])
        workload = harness.create_certificate(bridge, token=token)

    authority = x509.load_pem_x509_certificate(workload.chain[1].encode())
    workload.leaf.verify_directly_issued_by(authority)
    assert authority.public_key() == references_key
    assert versions(core, site) == before
    key, handed_back = guide_istiod.start(core, site, hsm)
    assert key.public_key() == references_key
    assert handed_back == x509.load_pem_x509_certificates(chain)


def test_a_serving_installation_is_taken_over_without_waiting(
    kube: KubeCluster,
    core: client.CoreV1Api,
    site: str,
    hsm: plugin.Plugin,
    root: pki.Issued,
    tmp_path: Path,
) -> None:
    made = guide_istiod.reference_secrets()
    chain = harness.signed_ca(guide_istiod.decrypted_csr(hsm, made[CSR]), root)
    for name, values in (made | {CERTIFICATE: {"cert-chain.pem": chain}}).items():
        guide_istiod.write(core, site, name, values)
    before = versions(core, site)

    with bridge_of(kube, site, hsm, tmp_path) as bridge:
        bridge.await_serving()

    assert "Wait until the CA certificate" not in bridge.log
    assert "CA cert:" in bridge.log
    assert versions(core, site) == before


def test_what_the_bridge_makes_itself_the_guides_istiod_goes_on_with(
    kube: KubeCluster,
    core: client.CoreV1Api,
    site: str,
    hsm: plugin.Plugin,
    root: pki.Issued,
    tmp_path: Path,
) -> None:
    with bridge_of(kube, site, hsm, tmp_path) as bridge:
        bridge.await_log("Wait until the CA certificate secret")
        csr = guide_istiod.decrypted_csr(hsm, guide_istiod.read(core, site, CSR))
        chain = harness.signed_ca(csr, root)
        guide_istiod.write(core, site, CERTIFICATE, {"cert-chain.pem": chain})
        bridge.await_serving()

    key, handed_back = guide_istiod.start(core, site, hsm)
    assert key.key_size == 2048
    assert handed_back[0].public_key() == key.public_key()


def test_a_csr_of_another_trust_domain_is_not_taken_over(
    kube: KubeCluster, core: client.CoreV1Api, site: str, hsm: plugin.Plugin, tmp_path: Path
) -> None:
    made = guide_istiod.reference_secrets()
    made[CSR]["csr-id"] = b"another.local"
    for name, values in made.items():
        guide_istiod.write(core, site, name, values)

    with bridge_of(kube, site, hsm, tmp_path) as bridge:
        assert bridge.await_exit() == 2

    assert "set TRUST_DOMAIN=another.local" in bridge.log
    assert guide_istiod.read(core, site, CSR) == made[CSR]
