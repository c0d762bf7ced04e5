"""The pages whose commands are really run, in their order; and the names of those that are not."""

import base64
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from kubernetes import client

from istio_hsm_proto import kms_istio_v1_pb2 as pb
from tests.docs import operator
from tests.docs.pages import REPOSITORY, Block, blocks_of, page, pages
from tests.docs.sandbox import SOCKET, PageError, Sandbox
from tests.support import pki
from tests.support import plugin as plugins
from tests.support.kube import KubeCluster
from tests.support.openbao import OpenBao, bao_path
from tests.support.softhsm import SoftHsm

RUNS = {
    ("README.md", "demo"),
    ("README.fr.md", "demo"),
    ("docs/hsm-plugin.md", "run"),
    ("docs/installer.md", "run"),
    ("docs/operator-guide.md", "tool"),
    ("docs/operator-guide.md", "hand"),
    ("docs/disaster-recovery.md", "tool"),
    ("docs/disaster-recovery.md", "lost"),
    ("docs/disaster-recovery.md", "revoke"),
    ("docs/migration.md", "run"),
    ("docs/keys.md", "names"),
    ("docs/keys.md", "kek"),
    ("docs/keys.md", "destroy"),
    ("docs/luna.md", "destroy"),
    ("docs/being-seen.md", "audit"),
    ("docs/ca-bridge.md", "renewal"),
    ("docs/ca-bridge.md", "revoke"),
    ("docs/vault-client.md", "run"),
    ("docs/deploy.md", "namespace"),
    ("docs/images.md", "namespace"),
}
"""The runs: each has a test in this folder. README.fr.md's is README.md's, word for word."""

ONLY_PARSED = {
    "docs/performance.md": "measurements, which tests do not repeat",
    "docs/tuning.md": "as above",
}
"""Pages whose commands are parsed by their programs and run by nobody here, and why that is so."""

NOT_RUN = {
    ("README.md", "## Two commands"): "`make test` is what runs this",
    ("README.fr.md", "## Deux commandes"): "`make test` is what runs this",
    ("docs/being-seen.md", "## Alerts and dashboard"): "needs minutes, and Prometheus",
    ("docs/ca-bridge.md", "## Another key, another root"): "tests/e2e/test_bridge_rotation.py",
    ("docs/deploy.md", "## Helm and istioctl"): "tests/e2e/test_manifests.py, without the two",
    ("docs/images.md", "# Images"): "tests/images builds them",
    ("docs/images.md", "## Without an image registry"): "tests/images does it",
    ("docs/disaster-recovery.md", "## Drills"): "tests/e2e drills on a cluster with an issuing CA",
    ("docs/hsm-plugin.md", "## Who may call"): "test_peer_credentials.py",
    ("docs/hsm-plugin.md", "## Over TCP"): "test_tcp.py",
    ("docs/installer.md", "# istio-hsm: the guide as one command"): "a list; tests/e2e runs each",
    ("docs/installer.md", "## The ceremony"): "a root in a token: tests/e2e",
    ("docs/installer.md", "## drill"): "as above",
    ("docs/operator-guide.md", "## 5. Istio's release"): "downloads",
    ("docs/operator-guide.md", "## 12. External IP"): "`expose --ip` waits for a load balancer",
}
"""Blocks of the other pages that are parsed and not run, by their heading, and why."""

_ISTIOCTL = """#!/bin/sh
echo "$@" >> istioctl.log
exec kubectl create service loadbalancer istio-ingressgateway -n istio-system --tcp=443
"""
"""A stand-in: it writes down what it was told, and makes the Service of a gateway."""

_BOTH_ROOTS_ARE_PUBLISHED = Block(
    "this test",
    1,
    "sh",
    frozenset(),
    "until kubectl get configmap istio-ca-root-cert -n shop -o yaml > shop.yaml"
    " && test $(grep -c BEGIN shop.yaml) = 2; do sleep 0.2; done",
)
"""The plugin of the page's shell must live until the bridge has had the next chain judged by it."""


def test_every_block_of_commands_is_run_or_said_to_be_only_parsed() -> None:
    blocks = [block for one in pages() for block in one.blocks() if block.language == "sh"]
    assert {(block.page, run) for block in blocks for run in block.runs} == RUNS
    with_runs = {name for name, _ in RUNS}
    left = {(block.page, block.heading) for block in blocks if not block.runs}
    assert {(name, heading) for name, heading in left if name in with_runs} == set(NOT_RUN)
    assert {name for name, _ in left} - with_runs == set(ONLY_PARSED)


@pytest.fixture
def cluster(kube: KubeCluster) -> Iterator[KubeCluster]:
    """A cluster of the test's own: the pages write to istio-system and vault."""
    del kube  # it says whether there can be one
    with KubeCluster() as own:
        yield own


def test_a_statement_that_fails_is_named_and_ends_the_run(sandbox: Sandbox) -> None:
    [block] = page("docs/hsm-plugin.md").blocks()[:1]
    broken = Block("page.md", 7, "sh", block.runs, "true\nfalse # exit 3\ntouch reached\n")
    with pytest.raises(PageError, match=r"page\.md:8 ended with 1"):
        sandbox.run([broken])
    assert not (sandbox.folder / "reached").exists()


@pytest.mark.timeout(300)
def test_the_demo_of_the_readme() -> None:
    [block] = blocks_of("README.md", "demo")
    assert [one.text for one in blocks_of("README.fr.md", "demo")] == [block.text]
    ran = subprocess.run(
        ["bash", "-euc", block.text],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "OK" in ran.stdout


@pytest.mark.timeout(300)
def test_the_first_block_of_the_plugins_page(
    sandbox: Sandbox, hsm: SoftHsm, tmp_path: Path
) -> None:
    root = operator.offline_root()
    operator.write_root(sandbox.folder, root)
    ca = pki.intermediate(root)
    (sandbox.folder / "cert-chain.pem").write_bytes(ca.pem + root.pem)
    pin = sandbox.folder / "pin"
    pin.write_text(operator.pin_of(hsm))
    pin.chmod(0o400)
    with plugins.running(hsm, tmp_path / "before") as plugin:
        write_encrypted_csr(plugin, pki.request("mesh"), sandbox.folder / "encrypted_csr.json")
    told = sandbox.run(blocks_of("docs/hsm-plugin.md", "run"))
    assert f"KEK ID: {operator.KEK_ID}" in told
    assert "Verified: CN=Mesh CA" in told
    assert (sandbox.folder / "csr.pem").read_text().startswith("-----BEGIN CERTIFICATE REQUEST")


@pytest.mark.timeout(300)
def test_the_ceremony_of_the_installers_page(
    sandbox: Sandbox, hsm: SoftHsm, tmp_path: Path, cluster: KubeCluster
) -> None:
    root = operator.offline_root()
    operator.write_root(sandbox.folder, root)
    store = tmp_path / "store"
    store.mkdir()
    sandbox.replaced["/var/lib/istio-hsm"] = str(store)
    cluster.create_namespace("istio-system")
    cluster.create_pod("istio-system", "istiod-1", labels={"app": "istiod"})
    core = client.CoreV1Api(cluster.admin_client())
    core.patch_namespaced_pod_status(
        "istiod-1",
        "istio-system",
        {"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}},
    )
    encrypted = sandbox.folder / "published.json"
    with plugins.running(hsm, tmp_path / "run") as plugin:
        sandbox.replaced[SOCKET] = str(plugin.socket)
        write_encrypted_csr(plugin, pki.request("mesh"), encrypted)
        core.create_namespaced_secret(
            "istio-system",
            client.V1Secret(
                metadata=client.V1ObjectMeta(name="istio-ca-cert-csr"),
                data=json.loads(encrypted.read_text()),
            ),
        )
        sandbox_with_cluster(sandbox, cluster)
        sandbox.run(blocks_of("docs/installer.md", "run"))
    secret = core.read_namespaced_secret("istio-ca-cert", "istio-system")
    chain = (sandbox.folder / "cert-chain.pem").read_bytes()
    assert base64.b64decode((secret.data or {})["cert-chain.pem"]) == chain
    assert (store / "istio-ca-cert" / "cert-chain.pem").read_bytes() == chain


@pytest.mark.timeout(300)
@pytest.mark.parametrize("run", ["tool", "hand"])
def test_the_operator_guide_then_a_renewal_and_the_next_root(
    run: str,
    sandbox: Sandbox,
    hsm: SoftHsm,
    tmp_path: Path,
    cluster: KubeCluster,
    bao: OpenBao,
    with_kubectl: Path,
) -> None:
    guide = page("docs/operator-guide.md")
    folder = sandbox.folder
    operator.write_root(folder, operator.offline_root())
    operator.write_root(folder, operator.offline_root("Next Root"), "new-root")
    operator.write_vault_files(sandbox, bao)
    values = operator.write_credentials(folder / "hsm", operator.pin_of(hsm))
    (folder / "Chrystoki.conf").write_text("Chrystoki2 = { }\n")
    (folder / "deploy").symlink_to(REPOSITORY / "deploy")
    sandbox.program("kubectl", operator.kubectl_with_exec(with_kubectl, tmp_path / "bridge.env"))
    sandbox.program("vault", Path(bao_path()))
    sandbox.program("istioctl", _ISTIOCTL)
    sandbox.program(
        "fill-in",
        f"#!/bin/sh\ncat > \"$1\" <<'EOF'\n{configuration(bao, sandbox.replaced[SOCKET])}EOF\n",
    )
    sandbox_with_cluster(sandbox, cluster)
    sandbox.write_files_of(guide.blocks())
    operator.create_shop(cluster)

    socket = Path(sandbox.replaced[SOCKET])
    with operator.cluster_that_starts_the_ca(cluster, socket, tmp_path):
        sandbox.run(
            [
                *blocks_of(guide.name, run),
                *blocks_of("docs/disaster-recovery.md", run),
                *([_BOTH_ROOTS_ARE_PUBLISHED] if run == "tool" else []),
            ]
        )
    roots = ["root.pem", "new-root.pem"] if run == "tool" else ["root.pem"]
    trusted = {(folder / name).read_text() for name in roots}
    assert set(pem_blocks(operator.published_roots(cluster, "shop"))) == trusted
    assert operator.delivered_to_the_ca(cluster, bao, tmp_path / "pod") == values
    csr = x509.load_pem_x509_csr((folder / "csr.pem").read_bytes())
    assert operator.key_sha256(csr) in (tmp_path / "bridge.log").read_text()
    assert "deploy/istioctl/ca-server.yaml" in (folder / "istioctl.log").read_text()
    labels = client.CoreV1Api(cluster.admin_client()).read_namespace("shop").metadata
    assert labels is not None
    assert (labels.labels or {})["istio.io/rev"] == "default"
    assert operator.restarted(cluster)
    assert operator.gateway_address(cluster) == ("203.0.113.1" if run == "hand" else None)


def pem_blocks(text: str) -> list[str]:
    end = "-----END CERTIFICATE-----\n"
    return [f"{part}{end}" for part in text.split(end) if part]


def configuration(bao: OpenBao, socket: str) -> str:
    """Return istio-hsm.yaml as the guide has it filled in."""
    return f"""apiVersion: istio-hsm/v1
cluster: {{suffix: c1}}
vault: {{address: "{bao.address}", caFile: vault-ca.pem}}
hsm:
  slotLabel: mesh
  kekId: {operator.KEK_ID}
  rootCertFile: root.pem
  clientCertFile: hsm/clientcert.pem
  clientKeyFile: hsm/clientkey.pem
  serverCertFile: hsm/servercert.pem
  pinFile: hsm/pin
  socket: {socket}
istio: {{flavour: upstream, version: 1.29.0, revision: "", serviceAccount: istiod-ca-bridge}}
"""


def sandbox_with_cluster(sandbox: Sandbox, cluster: KubeCluster) -> None:
    sandbox.environment["KUBECONFIG"] = str(cluster.kubeconfig())
    sandbox.environment["EDITOR"] = "fill-in"


def write_encrypted_csr(plugin: plugins.Plugin, csr: bytes, path: Path) -> None:
    """Write a CSR as the Secret istio-ca-cert-csr has it; the KEK is made when it is not there."""
    kek = operator.KEK_ID.encode()
    with plugin.keys() as keys:
        keys.GenerateKEK(pb.GenerateKEKRequest(kek_kid=kek))
        dek = keys.GenerateDEK(pb.GenerateDEKRequest(kek_kid=kek)).encrypted_dek_blob
        sealed = keys.AuthenticatedEncrypt(
            pb.AuthenticatedEncryptRequest(
                kek_kid=kek, encrypted_dek_blob=dek, plaintext=csr, aad=b"cluster.local"
            )
        ).ciphertext
    values = {
        "kek-id": kek,
        "encrypted-dek": dek,
        "csr-id": b"cluster.local",
        "encrypted-csr": sealed,
    }
    path.write_text(
        json.dumps({key: base64.b64encode(value).decode() for key, value in values.items()})
    )
