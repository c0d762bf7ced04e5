"""ServiceAccount tokens, judged by a real API server on the bridge's behalf."""

import secrets
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import jwt
import pytest
from cryptography import x509
from kubernetes import client

from tests.integration.istiod_ca_bridge import cluster_harness, harness
from tests.integration.istiod_ca_bridge.cluster_harness import Site
from tests.support.kube import KubeCluster


@pytest.fixture(scope="module")
def site(kube: KubeCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    settings = {
        "PUBLISH_ROOT_CERT": "false",
        "TOKEN_REVIEW_CACHE": "1s",
    }
    with cluster_harness.serving_site(
        kube, f"bridge-{secrets.token_hex(4)}", tmp_path_factory.mktemp("bridge"), settings
    ) as site:
        yield site


@pytest.fixture
def token(site: Site, namespace: str) -> str:
    """A sidecar's token in a namespace of the test's own."""
    site.kube.create_service_account(namespace, "cart")
    site.kube.create_pod(namespace, "cart-0", service_account="cart")
    return sidecar_token(site, namespace)


def sidecar_token(site: Site, namespace: str, audience: str = "istio-ca") -> str:
    return site.kube.service_account_token(
        namespace, "cart", audiences=[audience], pod="cart-0", expiration_seconds=600
    )


def refusal(site: Site, token: str) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        harness.create_certificate(site.bridge, token=token)
    return caught.value.code(), caught.value.details() or ""


def status_of(site: Site, token: str) -> grpc.StatusCode:
    try:
        harness.create_certificate(site.bridge, token=token)
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return grpc.StatusCode.OK


def eventually(site: Site, token: str, wanted: grpc.StatusCode) -> None:
    site.bridge.wait_until(lambda: status_of(site, token) is wanted, wanted.name)


def test_a_sidecar_gets_its_own_account_s_certificate_by_its_projected_token(
    site: Site, namespace: str, token: str
) -> None:
    workload = harness.create_certificate(site.bridge, token=token)

    names = workload.leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [
        f"spiffe://cluster.local/ns/{namespace}/sa/cart"
    ]
    pod = client.CoreV1Api(site.kube.admin_client()).read_namespaced_pod("cart-0", namespace)
    assert pod.metadata is not None
    assert f"pod=cart-0 pod_uid={pod.metadata.uid}" in site.bridge.log
    assert token not in site.bridge.log


def test_a_token_for_the_api_server_itself_is_refused(
    site: Site, namespace: str, token: str
) -> None:
    other = sidecar_token(site, namespace, audience="vault")
    for wrong in (other, site.kube.service_account_token(namespace, "cart")):
        assert refusal(site, wrong)[0] is grpc.StatusCode.UNAUTHENTICATED
    assert token not in site.bridge.log


def test_a_token_is_refused_when_a_letter_of_it_or_its_signer_is_changed(
    site: Site, token: str
) -> None:
    head, claims, signature = token.split(".")
    swapped = "A" if signature[20] != "A" else "B"
    changed = f"{head}.{claims}.{signature[:20]}{swapped}{signature[21:]}"
    forged = jwt.encode(
        jwt.decode(token, options={"verify_signature": False}),
        harness.token_issuer().key,
        algorithm="RS256",
        headers={"kid": jwt.get_unverified_header(token)["kid"]},
    )

    for wrong in (changed, forged):
        assert refusal(site, wrong)[0] is grpc.StatusCode.UNAUTHENTICATED


def test_a_token_that_expired_is_refused_by_whoever_looks_first(site: Site, token: str) -> None:
    claims = jwt.decode(token, options={"verify_signature": False})
    signed = jwt.encode(
        claims | {"exp": int(time.time()) - 1}, harness.token_issuer().key, algorithm="RS256"
    )

    status, reason = refusal(site, signed)
    assert status is grpc.StatusCode.UNAUTHENTICATED
    assert "expired" in reason


def test_a_deleted_service_account_s_token_is_refused_once_the_answer_is_forgotten(
    site: Site, namespace: str, token: str
) -> None:
    harness.create_certificate(site.bridge, token=token)

    client.CoreV1Api(site.kube.admin_client()).delete_namespaced_service_account("cart", namespace)

    eventually(site, token, grpc.StatusCode.UNAUTHENTICATED)


def test_a_deleted_pod_s_token_is_refused_once_the_answer_is_forgotten(
    site: Site, namespace: str, token: str
) -> None:
    harness.create_certificate(site.bridge, token=token)

    client.CoreV1Api(site.kube.admin_client()).delete_namespaced_pod(
        "cart-0", namespace, grace_period_seconds=0
    )

    eventually(site, token, grpc.StatusCode.UNAUTHENTICATED)


def test_a_herd_with_one_token_is_served_whole(site: Site, token: str) -> None:
    with ThreadPoolExecutor(16) as herd:
        chains = list(
            herd.map(lambda _: harness.create_certificate(site.bridge, token=token), range(64))
        )

    assert len({workload.leaf.serial_number for workload in chains}) == 64


def test_while_the_api_server_is_away_agents_are_told_to_come_again_and_then_served(
    site: Site, namespace: str, token: str
) -> None:
    certified = harness.create_certificate(site.bridge, token=token)
    fresh = sidecar_token(site, namespace)
    site.kube.stop_apiserver()
    try:
        assert refusal(site, fresh) == (
            grpc.StatusCode.UNAVAILABLE,
            "the Kubernetes API cannot be asked now; try again",
        )
        harness.create_certificate(site.bridge, client=certified)
        assert site.bridge.health() == 1
    finally:
        site.kube.start_apiserver()

    eventually(site, fresh, grpc.StatusCode.OK)
