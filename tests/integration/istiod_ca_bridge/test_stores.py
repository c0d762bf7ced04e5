"""One suite on every SecretStore: a directory, and Secrets of a real Kubernetes API."""

import asyncio
import base64
import os
from pathlib import Path

import pytest
from kubernetes import client

from istiod_ca_bridge.directory_store import DirectoryStore
from istiod_ca_bridge.errors import ConfigError, SecretExistsError, StoreUnavailableError
from istiod_ca_bridge.kube import KubernetesStore, kubernetes_store
from istiod_ca_bridge.kube_client import connect
from istiod_ca_bridge.store import SecretStore
from tests.integration.istiod_ca_bridge import harness
from tests.integration.istiod_ca_bridge.conftest import Mesh
from tests.support.kube import KubeCluster
from tests.support.ports import free_port

VALUES = {"kek-id": b"kek", "encrypted-dek": bytes(range(256)), "csr-id": b"cluster.local"}


@pytest.fixture(params=["directory", "kubernetes"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> SecretStore:
    if request.param == "directory":
        return DirectoryStore(tmp_path)
    cluster: KubeCluster = request.getfixturevalue("kube")
    return KubernetesStore(
        client.CoreV1Api(cluster.admin_client()), request.getfixturevalue("namespace")
    )


async def test_a_secret_that_was_never_made_is_none(store: SecretStore) -> None:
    assert await store.read("istio-ca-cert") is None


async def test_what_is_created_is_read_back_byte_for_byte(store: SecretStore) -> None:
    await store.create("istio-ca-cert-csr", VALUES)

    assert await store.read("istio-ca-cert-csr") == VALUES
    assert await store.read("istio-ca-cert") is None


async def test_a_second_creation_is_refused_and_changes_nothing(store: SecretStore) -> None:
    await store.create("istio-ca-cert-csr", VALUES)

    with pytest.raises(SecretExistsError):
        await store.create("istio-ca-cert-csr", {"kek-id": b"other"})
    assert await store.read("istio-ca-cert-csr") == VALUES


async def test_of_many_creations_at_once_exactly_one_wins(store: SecretStore) -> None:
    results = await asyncio.gather(
        *(store.create("s", {"number": b"%d" % number}) for number in range(8)),
        return_exceptions=True,
    )

    assert results.count(None) == 1
    assert all(isinstance(result, SecretExistsError | None) for result in results)
    assert await store.read("s") == {"number": b"%d" % results.index(None)}


async def test_a_folder_is_the_owner_s_alone_and_holds_nothing_half_written(
    tmp_path: Path,
) -> None:
    await DirectoryStore(tmp_path).create("s", VALUES)

    assert os.listdir(tmp_path) == ["s"]  # noqa: PTH208 - names are what is asserted
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "s").iterdir()} == {0o400}


async def test_a_folder_that_an_operator_made_and_left_empty_is_not_written_over(
    tmp_path: Path,
) -> None:
    (tmp_path / "s").mkdir()

    with pytest.raises(SecretExistsError):
        await DirectoryStore(tmp_path).create("s", VALUES)


async def test_a_directory_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailableError, match="cannot be written"):
        await DirectoryStore(tmp_path / "missing").create("s", VALUES)


async def test_a_secret_larger_than_kubernetes_allows_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "value").write_bytes(bytes((1 << 20) + 1))

    with pytest.raises(StoreUnavailableError, match="more than"):
        await DirectoryStore(tmp_path).read("s")


async def test_a_kubernetes_secret_has_the_type_that_the_guide_s_has(
    kube: KubeCluster, namespace: str
) -> None:
    core = client.CoreV1Api(kube.admin_client())

    await KubernetesStore(core, namespace).create("istio-ca-encrypted-key", VALUES)

    secret = core.read_namespaced_secret("istio-ca-encrypted-key", namespace)
    assert secret.type == "istio.io/intermediate-ca"
    assert secret.data == {k: base64.b64encode(v).decode() for k, v in VALUES.items()}


async def test_an_account_without_rights_is_told_which_are_missing(
    kube: KubeCluster, namespace: str
) -> None:
    kubeconfig = kube.service_account_kubeconfig(namespace, "default")
    store = kubernetes_store(connect(kubeconfig), namespace)

    with pytest.raises(StoreUnavailableError) as caught:
        await store.read("istio-ca-cert")
    assert caught.value.hint == "grant read on Secret istio-ca-cert"


async def test_an_api_server_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(
        f"""
apiVersion: v1
kind: Config
clusters: [{{name: c, cluster: {{server: "http://127.0.0.1:{free_port()}"}}}}]
contexts: [{{name: c, context: {{cluster: c, user: u}}}}]
current-context: c
users: [{{name: u, user: {{}}}}]
"""
    )
    store = kubernetes_store(connect(path), "istio-system")

    with pytest.raises(StoreUnavailableError, match="cannot be reached"):
        await store.read("istio-ca-cert")
    with pytest.raises(StoreUnavailableError, match="cannot be reached"):
        await store.create("istio-ca-cert", VALUES)


def test_without_a_cluster_the_settings_are_at_fault() -> None:
    with pytest.raises(ConfigError, match="no Kubernetes API"):
        connect(None)
    with pytest.raises(ConfigError, match="no Kubernetes API"):
        connect(Path("/nowhere/kubeconfig"))


def test_the_whole_way_to_serving_on_kubernetes_secrets(
    kube: KubeCluster, namespace: str, mesh: Mesh, tmp_path: Path
) -> None:
    core = client.CoreV1Api(kube.admin_client())
    settings = {
        "BRIDGE_STORE": "kubernetes",
        "KUBECONFIG": str(kube.kubeconfig()),
        "POD_NAMESPACE": namespace,
    }
    with harness.running_bridge(tmp_path, mesh.plugin.socket, settings) as bridge:
        bridge.await_log(
            f"Wait until the CA certificate secret {namespace}.istio-ca-cert can be loaded..."
        )
        data = core.read_namespaced_secret("istio-ca-cert-csr", namespace).data or {}
        folder = bridge.secrets / "istio-ca-cert-csr"
        folder.mkdir()
        for key, value in data.items():
            (folder / key).write_bytes(base64.b64decode(value))
        chain = harness.signed_ca(harness.decrypted_csr(mesh.plugin, bridge), mesh.root)
        core.create_namespaced_secret(
            namespace,
            client.V1Secret(
                metadata=client.V1ObjectMeta(name="istio-ca-cert"),
                data={"cert-chain.pem": base64.b64encode(chain).decode()},
            ),
        )
        bridge.await_serving()
