"""The rights of docs/ca-bridge.md: enough for all that the bridge does, and no more."""

import itertools
import secrets
from collections.abc import Iterator

import grpc
import pytest
from kubernetes import client

from tests.integration.istiod_ca_bridge import cluster_harness, harness
from tests.integration.istiod_ca_bridge.cluster_harness import ACCOUNT, Site
from tests.support.kube import KubeCluster

_VERBS = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")
_KINDS = (
    ("", "secrets"),
    ("", "configmaps"),
    ("", "namespaces"),
    ("", "pods"),
    ("", "serviceaccounts"),
    ("", "events"),
    ("events.k8s.io", "events"),
    ("coordination.k8s.io", "leases"),
    ("authentication.k8s.io", "tokenreviews"),
    ("certificates.k8s.io", "certificatesigningrequests"),
    ("rbac.authorization.k8s.io", "clusterroles"),
)
_READ = (
    "istio-ca-encrypted-key",
    "istio-ca-cert-csr",
    "istio-ca-cert",
    "istio-ca-cert-csr-renewal",
    "istio-ca-rotation",
    "istio-ca-encrypted-key-next",
    "istio-ca-cert-csr-next",
    "istio-ca-cert-next",
    "istio-ca-encrypted-key-previous",
)
_PATCHED = ("istio-ca-encrypted-key", "istio-ca-cert-csr", "istio-ca-cert", "istio-ca-rotation")
_NAMES = (
    *_READ,
    "istiod-tls",
    "istio-ca-root-cert",
    "istio-hsm-ca-status",
    "istiod-ca-bridge",
    "another",
    "",
)
_ROOT = "configmaps istio-ca-root-cert"
_HERE = {
    *(f"get secrets {name}" for name in _READ),
    *(f"patch secrets {name}" for name in _PATCHED),
    *(f"delete secrets {name}" for name in _READ[3:]),
    "get secrets istiod-tls",
    "patch secrets istiod-tls",
    "get leases istiod-ca-bridge",
    "patch leases istiod-ca-bridge",
    "get configmaps istio-hsm-ca-status",
    "patch configmaps istio-hsm-ca-status",
    *(f"get pods {name}".strip() for name in _NAMES),
    *(
        f"{verb} events.events.k8s.io {name}".strip()
        for verb in ("create", "patch")
        for name in _NAMES
    ),
    *(f"create leases {name}".strip() for name in _NAMES),
    *(f"create secrets {name}".strip() for name in _NAMES),
}
_EVERYWHERE = {
    f"list {_ROOT}",
    f"watch {_ROOT}",
    f"patch {_ROOT}",
    *(f"create configmaps {name}".strip() for name in _NAMES),
    *(f"{verb} namespaces {name}".strip() for verb in ("list", "watch") for name in _NAMES),
    *(f"create tokenreviews {name}".strip() for name in _NAMES),
}


@pytest.fixture(scope="module")
def site(kube: KubeCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with cluster_harness.serving_site(
        kube, f"bridge-{secrets.token_hex(4)}", tmp_path_factory.mktemp("bridge")
    ) as site:
        yield site


def allowed(site: Site, namespace: str) -> set[str]:
    """Return each `verb resource name` that the API server lets the bridge's account do."""
    reviews = client.AuthorizationV1Api(site.kube.admin_client())
    found = set()
    for verb, (group, kind), name in itertools.product(_VERBS, _KINDS, _NAMES):
        review = client.V1SubjectAccessReview(
            spec=client.V1SubjectAccessReviewSpec(
                user=f"system:serviceaccount:{site.namespace}:{ACCOUNT}",
                groups=["system:serviceaccounts", "system:authenticated"],
                resource_attributes=client.V1ResourceAttributes(
                    verb=verb, group=group, resource=kind, name=name, namespace=namespace
                ),
            )
        )
        status = reviews.create_subject_access_review(review).status
        if status is not None and status.allowed:
            shown = f"{kind}.{group}" if group == "events.k8s.io" else kind
            found.add(f"{verb} {shown} {name}".strip())
    return found


def test_the_bridge_does_all_its_work_with_the_documented_rights(
    site: Site, namespace: str
) -> None:
    site.bridge.await_log("istiod_tls.issued")
    site.bridge.wait_until(
        lambda: f"root_cert.published namespace={namespace}" in site.bridge.log, "the root"
    )
    token = site.kube.service_account_token(namespace, "default", audiences=["istio-ca"])
    harness.create_certificate(site.bridge, token=token)

    assert "answers 403" not in site.bridge.log
    assert "grant" not in site.bridge.log


def test_its_account_may_do_nothing_else(site: Site, namespace: str) -> None:
    assert allowed(site, site.namespace) == _HERE | _EVERYWHERE
    assert allowed(site, namespace) == _EVERYWHERE


def test_without_its_rights_the_log_names_the_one_that_lacks_and_agents_come_again(
    site: Site, namespace: str
) -> None:
    token = site.kube.service_account_token(namespace, "default", audiences=["istio-ca"])
    cluster_harness.revoke(site.kube, site.namespace)
    cluster_harness.revoke_here(site.kube, site.namespace)

    def refused() -> bool:
        fresh = site.kube.service_account_token(namespace, "default", audiences=["istio-ca"])
        try:
            harness.create_certificate(site.bridge, token=fresh)
        except grpc.RpcError as error:
            return bool(error.code() is grpc.StatusCode.UNAVAILABLE)
        return False

    site.bridge.wait_until(refused, "UNAVAILABLE")
    site.bridge.await_log("answers 403 to create of tokenreviews")
    site.bridge.await_log("grant get on Secret istiod-tls")
    assert token not in site.bridge.log
    assert site.bridge.health() == 1
