"""`istio-ca-root-cert`, published by a bridge with the documented rights."""

import secrets
from collections.abc import Iterator

import pytest
from kubernetes import client

from tests.integration.istiod_ca_bridge import cluster_harness
from tests.integration.istiod_ca_bridge.cluster_harness import Site
from tests.support.kube import KubeCluster

NAME = "istio-ca-root-cert"
KEY = "root-cert.pem"


@pytest.fixture(scope="module")
def site(kube: KubeCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with cluster_harness.serving_site(
        kube, f"bridge-{secrets.token_hex(4)}", tmp_path_factory.mktemp("bridge")
    ) as site:
        yield site


def held(site: Site, namespace: str) -> dict[str, str] | None:
    try:
        return site.core.read_namespaced_config_map(NAME, namespace).data
    except client.ApiException as error:
        if error.status == 404:
            return None
        raise


def await_root(site: Site, namespace: str) -> None:
    root = site.root.pem.decode()
    site.bridge.wait_until(
        lambda: (held(site, namespace) or {}).get(KEY, "") == root, f"the root in {namespace}"
    )


def new_namespaces(site: Site, count: int) -> list[str]:
    prefix = secrets.token_hex(3)
    names = [f"many-{prefix}-{number}" for number in range(count)]
    for name in names:
        site.core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=name)))
    return names


def test_namespaces_that_were_there_before_hold_the_root(site: Site) -> None:
    for namespace in ("default", "kube-system", site.namespace):
        await_root(site, namespace)


def test_fifty_new_namespaces_get_the_root(site: Site) -> None:
    for namespace in new_namespaces(site, 50):
        await_root(site, namespace)


def test_a_root_changed_by_hand_is_mended_and_other_keys_stay(site: Site, namespace: str) -> None:
    await_root(site, namespace)

    site.core.patch_namespaced_config_map(
        NAME, namespace, {"data": {KEY: "tampered", "mine": "stays"}}
    )

    await_root(site, namespace)
    assert (held(site, namespace) or {})["mine"] == "stays"


def test_a_config_map_deleted_or_emptied_by_hand_comes_back(site: Site, namespace: str) -> None:
    await_root(site, namespace)
    site.core.delete_namespaced_config_map(NAME, namespace)
    await_root(site, namespace)
    site.core.patch_namespaced_config_map(NAME, namespace, {"data": {KEY: None}})
    await_root(site, namespace)


def test_a_config_map_of_another_name_is_not_touched(site: Site, namespace: str) -> None:
    body = client.V1ConfigMap(metadata=client.V1ObjectMeta(name="other"), data={KEY: "mine"})
    site.core.create_namespaced_config_map(namespace, body)
    await_root(site, namespace)

    assert site.core.read_namespaced_config_map("other", namespace).data == {KEY: "mine"}


def test_a_namespace_that_is_deleted_is_let_go(site: Site) -> None:
    (name,) = new_namespaces(site, 1)
    await_root(site, name)
    site.core.delete_namespace(name)

    def is_gone() -> bool:
        try:
            site.core.read_namespace(name)
        except client.ApiException as error:
            return bool(error.status == 404)
        return False

    site.bridge.wait_until(is_gone, "the end of the namespace")


def test_what_happens_while_the_api_server_is_away_is_made_good(site: Site, namespace: str) -> None:
    await_root(site, namespace)
    site.core.patch_namespaced_config_map(NAME, namespace, {"data": {KEY: "tampered"}})
    site.kube.stop_apiserver()
    site.bridge.await_log("root_cert.not_watched")
    site.kube.start_apiserver()

    await_root(site, namespace)
    (name,) = new_namespaces(site, 1)
    await_root(site, name)
