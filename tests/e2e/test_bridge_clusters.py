"""Tokens of another cluster: the same API server under another name, with rights of its own."""

import base64
import json
import secrets
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from kubernetes import client

from tests.integration.istiod_ca_bridge import cluster_harness, harness
from tests.integration.istiod_ca_bridge.cluster_harness import Site
from tests.support.kube import KubeCluster

_REVIEWER = "istio-reader"


@pytest.fixture(scope="module")
def site(kube: KubeCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    settings = {"PUBLISH_ROOT_CERT": "false", "ISTIOD_TLS": "false", "REMOTE_CLUSTERS": "true"}
    with cluster_harness.serving_site(
        kube, f"bridge-{secrets.token_hex(4)}", tmp_path_factory.mktemp("bridge"), settings
    ) as site:
        cluster_harness.grant_remote(kube, site.namespace)
        yield site


@pytest.fixture
def remote(site: Site, namespace: str) -> Iterator[str]:
    """A kubeconfig as istioctl writes it, of an account that may review tokens."""
    site.kube.create_service_account(namespace, _REVIEWER)
    rbac = client.RbacAuthorizationV1Api(site.kube.admin_client())
    binding = client.V1ClusterRoleBinding(
        metadata=client.V1ObjectMeta(name=namespace),
        role_ref=client.V1RoleRef(
            api_group="rbac.authorization.k8s.io", kind="ClusterRole", name="system:auth-delegator"
        ),
        subjects=[client.RbacV1Subject(kind="ServiceAccount", name=_REVIEWER, namespace=namespace)],
    )
    rbac.create_cluster_role_binding(binding)
    written = json.loads(site.kube.service_account_kubeconfig(namespace, _REVIEWER).read_text())
    cluster = written["clusters"][0]["cluster"]
    ca = Path(cluster.pop("certificate-authority")).read_bytes()
    cluster["certificate-authority-data"] = base64.b64encode(ca).decode()
    yield json.dumps(written)
    rbac.delete_cluster_role_binding(namespace)


def test_a_cluster_s_tokens_are_accepted_while_its_remote_secret_is_there(
    site: Site, namespace: str, remote: str
) -> None:
    site.kube.create_service_account(namespace, "cart")
    token = site.kube.service_account_token(namespace, "cart", audiences=["istio-ca"])
    wrong = site.kube.service_account_token(namespace, "cart", audiences=["vault"])

    def status(token: str, cluster: str) -> grpc.StatusCode:
        try:
            harness.create_certificate(site.bridge, token=token, cluster=cluster)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
        return grpc.StatusCode.OK

    def secret(name: str, kubeconfig: str, cluster: str) -> None:
        site.core.create_namespaced_secret(
            site.namespace,
            client.V1Secret(
                metadata=client.V1ObjectMeta(name=name, labels={"istio/multiCluster": "true"}),
                data={cluster: base64.b64encode(kubeconfig.encode()).decode()},
            ),
        )

    assert status(token, "east") is grpc.StatusCode.UNAUTHENTICATED
    secret("istio-remote-secret-east", remote, "east")
    site.bridge.await_log("remote_cluster.added cluster=east")
    assert status(token, "east") is grpc.StatusCode.OK
    assert status(wrong, "east") is grpc.StatusCode.UNAUTHENTICATED
    assert status(token, "west") is grpc.StatusCode.UNAUTHENTICATED

    secret("istio-remote-secret-west", remote.replace('"token"', '"tokenFile"'), "west")
    site.bridge.await_log("remote_cluster.refused cluster=west")
    assert status(token, "west") is grpc.StatusCode.UNAUTHENTICATED

    site.core.delete_namespaced_secret("istio-remote-secret-east", site.namespace)
    site.bridge.await_log("remote_cluster.removed cluster=east")
    assert status(token, "east") is grpc.StatusCode.UNAUTHENTICATED
    assert status(token, "Kubernetes") is grpc.StatusCode.OK
    assert token not in site.bridge.log
