"""Revoking on a real API server: the record, the list in every namespace, and who is refused."""

import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from cryptography import x509

from istiod_ca_bridge.crl_bundle import lists_in
from tests.integration.istiod_ca_bridge import cluster_harness, harness
from tests.integration.istiod_ca_bridge.cluster_harness import Site
from tests.support import pki
from tests.support.kube import KubeCluster
from tests.support.plugin import program


@pytest.fixture(scope="module")
def site(kube: KubeCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("bridge")
    settings = {
        "CA_CRL": "true",
        "CRL_FILE": str(folder / "ca-crl.pem"),
        "ISSUANCE_LOG": str(folder / "issued.log"),
    }
    with cluster_harness.serving_site(
        kube, f"bridge-{secrets.token_hex(4)}", folder, settings
    ) as site:
        cluster_harness.grant_crl(kube, site.namespace)
        add_the_root_s_list(site)
        yield site


def add_the_root_s_list(site: Site) -> None:
    """Do as an operator does, once it is known that nothing is published without it."""
    site.bridge.await_log("crl.not_published")
    assert served(site, site.namespace) is None
    assert not Path(site.bridge.environment["CRL_FILE"]).exists()
    text = pki.crl_pem(site.root).decode()
    site.core.patch_namespaced_secret(
        "istio-ca-revocations", site.namespace, {"stringData": {"issuer-crls.pem": text}}
    )


def revoke(site: Site, *arguments: str) -> str:
    done = subprocess.run(
        [program("istiod-ca-bridge"), "revoke", *arguments],
        env=dict(site.bridge.environment),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def served(site: Site, namespace: str) -> x509.CertificateRevocationList | None:
    selector = "metadata.name=istio-ca-crl"
    found = site.core.list_namespaced_config_map(namespace, field_selector=selector).items
    if not found:
        return None
    assert found[0].data is not None
    own, of_the_root = lists_in(found[0].data["ca-crl.pem"].encode())
    assert of_the_root.issuer == site.root.certificate.subject
    return own


def lists(site: Site, namespace: str, *workloads: harness.Workload) -> bool:
    crl = served(site, namespace)
    serials = {it.leaf.serial_number for it in workloads}
    return crl is not None and {it.serial_number for it in crl} == serials


def openssl_heeds(folder: Path, workload: harness.Workload) -> bool:
    """Return whether openssl takes the leaf by the list that lies in the folder."""
    (folder / "leaf.pem").write_text(workload.chain[0])
    (folder / "ca.pem").write_text("".join(workload.chain[1:]))
    done = subprocess.run(
        [
            *("openssl", "verify", "-crl_check_all", "-CRLfile", "ca-crl.pem"),
            *("-CAfile", "ca.pem", "-untrusted", "ca.pem", "leaf.pem"),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "CRL" not in done.stderr, done.stderr
    return done.returncode == 0


def test_revoked_certificates_are_on_the_list_of_every_namespace_and_refused_as_proof(
    site: Site, namespace: str
) -> None:
    site.kube.create_service_account(namespace, "cart")
    site.kube.create_service_account(namespace, "bank")

    def workload(account: str) -> harness.Workload:
        token = site.kube.service_account_token(namespace, account, audiences=["istio-ca"])
        return harness.create_certificate(site.bridge, token=token)

    bank, stolen, other = workload("bank"), workload("cart"), workload("cart")
    site.bridge.wait_until(lambda: lists(site, namespace), "a list with no entry")
    assert openssl_heeds(site.bridge.folder, stolen)
    harness.create_certificate(site.bridge, client=stolen)

    assert "revoked 1 certificates" in revoke(site, f"{stolen.leaf.serial_number:x}")
    site.bridge.wait_until(lambda: lists(site, namespace, stolen), "the stolen one's entry")
    with pytest.raises(grpc.RpcError, match="revoked"):
        harness.create_certificate(site.bridge, client=stolen)
    assert not openssl_heeds(site.bridge.folder, stolen)
    renewed = harness.create_certificate(site.bridge, client=other)

    log = site.bridge.environment["ISSUANCE_LOG"]
    identity = f"spiffe://cluster.local/ns/{namespace}/sa/cart"
    told = revoke(site, "--log", log, "--reason", "keyCompromise", "--", identity)
    assert "1 were revoked already" in told
    site.bridge.wait_until(
        lambda: len(list(served(site, namespace) or ())) == 4, "all of the identity"
    )
    for revoked in (other, renewed):
        with pytest.raises(grpc.RpcError, match="revoked"):
            harness.create_certificate(site.bridge, client=revoked)
    harness.create_certificate(site.bridge, client=bank)


def test_the_list_is_mended_when_it_is_deleted_by_hand(site: Site, namespace: str) -> None:
    site.bridge.wait_until(lambda: served(site, namespace) is not None, "the list")
    site.core.delete_namespaced_config_map("istio-ca-crl", namespace)

    site.bridge.wait_until(lambda: served(site, namespace) is not None, "the list again")
