"""The native sidecar of a stock istiod, with the rights and settings of its manifests."""

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from kubernetes import client

from tests.e2e import guide_istiod
from tests.e2e.guide_istiod import CERTIFICATE, CSR
from tests.integration.istiod_ca_bridge import cluster_harness, harness
from tests.support import plugin, softhsm
from tests.support.figures import figures
from tests.support.kube import KubeCluster

RIGHTS = Path("deploy/kustomize/sealed/rbac.yaml")
FILES = ("ca-key.pem", "ca-cert.pem", "cert-chain.pem", "root-cert.pem")


@pytest.fixture
def cacerts() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="cacerts-", dir="/dev/shm"))
    yield folder
    shutil.rmtree(folder)


def test_with_istiods_own_account_the_sidecar_gives_istiod_its_ca_and_publishes_nothing(
    kube: KubeCluster, tmp_path: Path, cacerts: Path
) -> None:
    namespace = f"bridge-{secrets.token_hex(4)}"
    core = client.CoreV1Api(kube.admin_client())
    kube.create_namespace(namespace)
    kube.create_service_account(namespace, "istiod")
    cluster_harness.grant(kube, namespace, cluster_harness.shipped_rights(RIGHTS, namespace))
    root = harness.strict_root()
    settings = {
        "BRIDGE_MODE": "sealed",
        "BRIDGE_STORE": "kubernetes",
        "CA_PLUG_IN_DIR": str(cacerts),
        "KUBECONFIG": str(kube.service_account_kubeconfig(namespace, "istiod")),
        "POD_NAMESPACE": namespace,
    }
    with plugin.running(softhsm.make_token(tmp_path / "token"), tmp_path / "plugin") as hsm:
        harness.prepare(hsm, root)
        with harness.running_bridge(tmp_path, hsm.socket, settings) as bridge:
            bridge.await_log("Wait until the CA certificate secret")
            csr = guide_istiod.decrypted_csr(hsm, guide_istiod.read(core, namespace, CSR))
            chain = harness.signed_ca(csr, root)
            guide_istiod.write(core, namespace, CERTIFICATE, {"cert-chain.pem": chain})
            bridge.await_serving()
            told = figures(bridge.environment["METRICS_LISTEN"])

    assert all((cacerts / name).is_file() for name in FILES)
    certificate = x509.load_pem_x509_certificate((cacerts / "ca-cert.pem").read_bytes())
    assert certificate.public_key() == csr.public_key()
    ends = certificate.not_valid_after_utc.timestamp()
    assert told["citadel_server_cert_chain_expiry_timestamp"] == ends
    assert told['istiod_ca_bridge_lifecycle_state{state="waiting"}'] == 0
    assert not any('certificate="server"' in name for name in told)
    assert "answers 403" not in bridge.log
    with pytest.raises(client.ApiException, match="404"):
        core.read_namespaced_config_map("istio-ca-root-cert", namespace)
