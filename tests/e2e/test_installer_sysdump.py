"""The support bundle on a real Kubernetes API; the node's kubelet, which has the logs, is a
stand-in.
"""

import base64
import json
import secrets
import tarfile
from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from kubernetes import client

from tests.e2e.installer_runs import Ran, run_cli
from tests.support import kubelet, pki
from tests.support.kube import KubeCluster
from tests.support.kubelet import Kubelet

LOG = "istiod-1/hsm-plugin"


class Desk:
    """A support engineer's folder, and a control plane with one pod."""

    def __init__(self, folder: Path, kube: KubeCluster, namespace: str, node: Kubelet) -> None:
        self.folder, self.kube, self.namespace, self.node = folder, kube, namespace, node
        self.core = client.CoreV1Api(kube.admin_client())
        self.pin = f"pin{secrets.randbelow(10**9):09d}"
        self.client_key = pki.root().key.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        )
        (folder / "pin").write_text(self.pin)
        (folder / "k.pem").write_bytes(self.client_key)
        self.bundle = folder / "bundle.tar.gz"
        (folder / "istio-hsm.yaml").write_text(
            f"""
apiVersion: istio-hsm/v1
cluster: {{suffix: c1}}
vault: {{address: "https://127.0.0.1:1", caFile: ca.pem, reviewerNamespace: {namespace}}}
hsm: {{slotLabel: mesh, kekId: kek-1, rootCertFile: r, clientCertFile: c, clientKeyFile: k.pem,
  serverCertFile: s, pinFile: pin}}
istio: {{namespace: {namespace}}}
"""
        )
        pod = client.V1Pod(
            metadata=client.V1ObjectMeta(
                name="istiod-1", labels={"app": "istiod", "istio.io/rev": "asm-1106-2"}
            ),
            spec=client.V1PodSpec(
                node_name=node.node,
                containers=[
                    client.V1Container(
                        name="hsm-plugin",
                        image="x:1",
                        env=[
                            client.V1EnvVar(name="P11_TOKEN", value="mesh"),
                            client.V1EnvVar(name="MY_PASSWORD", value="canary-of-the-environment"),
                        ],
                    ),
                    client.V1Container(name="theirs", image="x:1"),
                ],
            ),
        )
        self.core.create_namespaced_pod(namespace, pod)
        self.log("Loaded P11 PIN from file: /var/run/hsm-credential/pin\n")
        node.logs[f"{namespace}/istiod-1/theirs"] = "another's log"

    def log(self, text: str) -> None:
        self.node.logs[f"{self.namespace}/{LOG}"] = text

    def run(self, *more: str, token: str = "") -> Ran:
        environment = {}
        if token:
            (self.folder / "token").write_text(token)
            environment = {"VAULT_TOKEN_FILE": str(self.folder / "token")}
        files = ("-f", str(self.folder / "istio-hsm.yaml"), "--out", str(self.bundle))
        cluster = ("--kubeconfig", str(self.kube.kubeconfig()))
        return run_cli(["sysdump", *files, *cluster, "-o", "json", *more], environment)

    def content(self) -> dict[str, str]:
        with tarfile.open(self.bundle) as archive:
            return {
                entry.name.partition("/")[2]: reader.read().decode()
                for entry in archive
                if (reader := archive.extractfile(entry))
            }


@pytest.fixture(scope="module")
def node(kube: KubeCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubelet]:
    name = f"node-{secrets.token_hex(4)}"
    with kubelet.running(kube, name, tmp_path_factory.mktemp("kubelet")) as running:
        yield running


@pytest.fixture
def desk(tmp_path: Path, kube: KubeCluster, namespace: str, node: Kubelet) -> Desk:
    return Desk(tmp_path, kube, namespace, node)


def test_the_bundle_has_what_is_on_the_list_and_no_more(desk: Desk) -> None:
    value = base64.b64encode(b"sealed-bytes").decode()
    desk.core.create_namespaced_secret(
        desk.namespace,
        client.V1Secret(
            metadata=client.V1ObjectMeta(name="istio-ca-encrypted-key"),
            data={"encrypted-skey": value, "again": value},
        ),
    )
    desk.core.create_namespaced_config_map(
        desk.namespace,
        client.V1ConfigMap(metadata=client.V1ObjectMeta(name="theirs"), data={"a": "b"}),
    )
    ran = desk.run()
    assert ran.code == 0, ran.out + ran.err
    content = desk.content()
    assert desk.bundle.stat().st_mode & 0o777 == 0o600
    assert "Loaded P11 PIN" in content["logs/istiod-1/hsm-plugin.log"]
    assert not {name for name in content if "theirs" in name}
    [pod] = json.loads(content["pods.json"])
    assert pod["containers"][0]["env"] == {"P11_TOKEN": "mesh", "MY_PASSWORD": "(hidden)"}
    shown = {entry["name"]: entry for entry in json.loads(content["secrets.json"])}
    keys = shown["istio-ca-encrypted-key"]["keys"]
    assert keys["encrypted-skey"]["bytes"] == len("sealed-bytes")
    assert keys["encrypted-skey"]["digest"] == keys["again"]["digest"]
    assert json.loads(content["config.json"])["hsm"]["slot_label"] == "mesh"
    assert "sealed-bytes" not in "".join(content.values())


@pytest.mark.parametrize(
    ("kind", "leaves"),
    [
        ("the PIN", lambda desk: f"login with PIN={desk.pin} failed"),
        ("the PIN", lambda desk: base64.b64encode(desk.pin.encode()).decode()),
        ("a PEM private key", lambda _: pem_of_another().replace("\n", " ")),
        ("a private key in base64", lambda _: body_of(pem_of_another())),
        ("the HSM client's key", lambda desk: desk.client_key.decode().splitlines()[1]),
        ("a JWT", lambda _: jwt.encode({"sub": "x"}, "k" * 32)),
        ("a Vault token", lambda _: "X-Vault-Token: hvs.CAESIJ" + "a" * 90),
        ("the Vault token", lambda _: "token=legacy-vault-token-0001"),
    ],
)
def test_a_secret_in_a_log_means_no_bundle_and_is_not_repeated(
    desk: Desk, kind: str, leaves: object
) -> None:
    assert callable(leaves)
    planted = leaves(desk)
    desk.log(f"starting\nbefore {planted} after\n")
    ran = desk.run(token="legacy-vault-token-0001")
    assert ran.code == 79, ran.out + ran.err
    [leak] = ran.document["leaks"]
    assert leak["file"] == "logs/istiod-1/hsm-plugin.log"
    assert kind in leak["kinds"]
    assert ran.document["bundle"] is None
    assert {path.name for path in desk.folder.iterdir()} <= {
        *("istio-hsm.yaml", "pin", "k.pem", "token"),
    }
    assert planted not in ran.out + ran.err

    again = desk.run("--leave-out", "logs/istiod-1/hsm-plugin.log")
    assert again.code == 0
    assert planted not in "".join(desk.content().values())


def test_a_private_value_of_a_secret_is_found_wherever_it_is(desk: Desk) -> None:
    token = f"reviewer-{secrets.token_hex(16)}"
    desk.core.create_namespaced_secret(
        desk.namespace,
        client.V1Secret(metadata=client.V1ObjectMeta(name="t"), string_data={"token": token}),
    )
    desk.core.create_namespaced_config_map(
        desk.namespace,
        client.V1ConfigMap(
            metadata=client.V1ObjectMeta(name="istio-hsm-settings"), data={"OOPS": token}
        ),
    )
    ran = desk.run()
    assert ran.code == 79
    [leak] = ran.document["leaks"]
    assert leak == {
        "file": "configmaps/istio-hsm-settings.json",
        "kinds": ["token of the Secret t"],
    }
    assert not desk.bundle.exists()


def test_an_existing_file_is_not_replaced(desk: Desk) -> None:
    desk.bundle.write_text("theirs")
    ran = desk.run()
    assert ran.code == 1
    assert "exists already" in ran.err
    assert desk.bundle.read_text() == "theirs"


def pem_of_another() -> str:
    key = pki.root().key
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def body_of(pem: str) -> str:
    return "".join(pem.splitlines()[1:-1])
