"""The ceremony through a real Kubernetes API and a real HSM plugin."""

import base64
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from kubernetes import client

from istio_hsm_proto import kms_istio_v1_pb2 as pb
from tests.e2e.installer_runs import run_cli
from tests.support import pki
from tests.support import plugin as plugins
from tests.support.kube import KubeCluster
from tests.support.plugin import Plugin
from tests.support.softhsm import make_token

CSR_ID = b"cluster.local"


@dataclass
class Bench:
    """The operator's folder, the cluster and the plugin."""

    folder: Path
    kube: KubeCluster
    plugin: Plugin
    namespace: str
    root: pki.Issued

    def run(self, *arguments: str) -> tuple[int, str, str]:
        ran = run_cli(["ceremony", *arguments, "-o", "json"], {})
        return ran.code, ran.out, ran.err

    @property
    def cluster(self) -> tuple[str, ...]:
        return ("-n", self.namespace, "--kubeconfig", str(self.kube.kubeconfig()))

    def file(self, name: str) -> str:
        return str(self.folder / name)

    @property
    def core(self) -> client.CoreV1Api:
        return client.CoreV1Api(self.kube.admin_client())

    def publish_csr(self, csr: bytes) -> None:
        """Write istio-ca-cert-csr as istiod does: encrypted through the plugin."""
        with self.plugin.keys() as keys:
            keys.GenerateKEK(pb.GenerateKEKRequest(kek_kid=b"kek"))
            dek = keys.GenerateDEK(pb.GenerateDEKRequest(kek_kid=b"kek")).encrypted_dek_blob
            sealed = keys.AuthenticatedEncrypt(
                pb.AuthenticatedEncryptRequest(
                    kek_kid=b"kek", encrypted_dek_blob=dek, plaintext=csr, aad=CSR_ID
                )
            ).ciphertext
        values = {"kek-id": b"kek", "encrypted-dek": dek, "csr-id": CSR_ID, "encrypted-csr": sealed}
        body = client.V1Secret(
            metadata=client.V1ObjectMeta(name="istio-ca-cert-csr"),
            data={key: base64.b64encode(value).decode() for key, value in values.items()},
        )
        self.core.create_namespaced_secret(self.namespace, body)

    def sign(self) -> int:
        return self.run(
            "sign",
            self.file("csr.pem"),
            *("--root-cert", self.file("root.pem"), "--root-key", self.file("root.key")),
            *("--chain", self.file("cert-chain.pem")),
        )[0]

    def submit(self, *more: str) -> tuple[int, str, str]:
        files = (self.file("cert-chain.pem"), "--csr", self.file("csr.pem"))
        return self.run("submit", *files, *self.cluster, *more)


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plugin]:
    folder = tmp_path_factory.mktemp("hsm")
    with plugins.running(make_token(folder / "token"), folder / "run") as running:
        yield running


@pytest.fixture
def bench(tmp_path: Path, kube: KubeCluster, plugin: Plugin, namespace: str) -> Bench:
    root = pki.root("Offline Root")
    (tmp_path / "root.pem").write_bytes(root.pem)
    (tmp_path / "root.key").write_bytes(
        root.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return Bench(tmp_path, kube, plugin, namespace, root)


@pytest.fixture
def csr(bench: Bench) -> bytes:
    """A CSR, fetched and decrypted into the folder."""
    made = pki.request("mesh")
    bench.publish_csr(made)
    encrypted = bench.file("encrypted_csr.json")
    assert bench.run("csr", "fetch", "--out", encrypted, *bench.cluster)[0] == 0
    code, out, err = bench.run(
        *("decrypt", encrypted, "--out", bench.file("csr.pem")),
        *("--socket", str(bench.plugin.socket)),
    )
    assert code == 0, err
    assert json.loads(out)["subject"] == "CN=mesh"
    return made


def test_from_the_secret_to_the_chain_that_istiod_serves(bench: Bench, csr: bytes) -> None:
    assert (bench.folder / "csr.pem").read_bytes() == csr
    assert bench.sign() == 0
    code, out, err = bench.submit("--wait", "0")
    assert code == 0, err
    assert json.loads(out)["delivered"] == f"Secret {bench.namespace}/istio-ca-cert"
    secret = bench.core.read_namespaced_secret("istio-ca-cert", bench.namespace)
    assert secret.data is not None
    chain = base64.b64decode(secret.data["cert-chain.pem"])
    assert chain == (bench.folder / "cert-chain.pem").read_bytes()
    assert bench.submit("--wait", "0")[0] == 0  # again is no harm


@pytest.mark.usefixtures("csr")
def test_a_chain_for_another_key_is_not_delivered(bench: Bench) -> None:
    assert bench.sign() == 0
    (bench.folder / "csr.pem").write_bytes(pki.request("mesh"))
    code, _, err = bench.submit("--wait", "0")
    assert code == 1
    assert "another key" in err
    with pytest.raises(client.ApiException) as missing:
        bench.core.read_namespaced_secret("istio-ca-cert", bench.namespace)
    assert missing.value.status == 404


@pytest.mark.usefixtures("csr")
def test_another_chain_is_replaced_only_on_purpose(bench: Bench) -> None:
    assert bench.sign() == 0
    assert bench.submit("--wait", "0")[0] == 0
    assert bench.sign() == 0  # a new serial number: another chain
    code, _, err = bench.submit("--wait", "0")
    assert code == 1
    assert "--replace" in err
    assert bench.submit("--wait", "0", "--replace")[0] == 0


@pytest.mark.usefixtures("csr")
def test_the_wait_says_what_for_and_ends_when_istiod_is_ready(bench: Bench) -> None:
    assert bench.sign() == 0
    bench.kube.create_pod(bench.namespace, "istiod-1", labels={"app": "istiod"})
    code, _, err = bench.submit("--wait", "1")
    assert code == 1
    assert "waiting until istiod is ready: pod istiod-1: Pending not ready" in err
    assert "the chain is delivered, but after 1 s istiod is not ready" in err

    ready = threading.Thread(target=_make_ready, args=(bench,))
    ready.start()
    code, _, err = bench.submit("--wait", "30")
    ready.join()
    assert code == 0, err


def test_a_csr_that_is_not_there_yet_is_told(bench: Bench) -> None:
    code, _, err = bench.run("csr", "fetch", "--out", bench.file("x"), *bench.cluster)
    assert code == 1
    error, hint = err.splitlines()
    assert error.endswith("istio-ca-cert-csr yet")
    assert hint.startswith("hint: istiod or the bridge writes it")


@pytest.mark.usefixtures("csr")
def test_a_changed_secret_does_not_decrypt(bench: Bench) -> None:
    encrypted = bench.folder / "encrypted_csr.json"
    document = json.loads(encrypted.read_text())
    document["csr-id"] = base64.b64encode(b"evil.local").decode()
    encrypted.write_text(json.dumps(document))
    code, _, err = bench.run(
        *("decrypt", str(encrypted), "--out", bench.file("other.pem")),
        *("--socket", str(bench.plugin.socket)),
    )
    assert code == 1
    assert err.startswith("error: hsm-plugin: ")
    assert not (bench.folder / "other.pem").exists()


def _make_ready(bench: Bench) -> None:
    """Do what the kubelet would."""
    time.sleep(0.5)
    bench.core.patch_namespaced_pod_status(
        "istiod-1",
        bench.namespace,
        {"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}},
    )
