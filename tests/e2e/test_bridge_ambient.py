"""Node agents that ask for the identities of their node's pods, on a real API server."""

import secrets
from collections.abc import Iterator

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf import struct_pb2
from kubernetes import client

from istio_hsm_proto import istio_ca_pb2 as ca
from istio_hsm_proto.istio_ca_pb2_grpc import IstioCertificateServiceStub
from tests.integration.istiod_ca_bridge import cluster_harness, harness
from tests.integration.istiod_ca_bridge.cluster_harness import Site
from tests.support.kube import KubeCluster

_NODE, _OTHER_NODE = "node-a", "node-b"


@pytest.fixture(scope="module")
def site(kube: KubeCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    namespace = f"bridge-{secrets.token_hex(4)}"
    settings = {
        "PUBLISH_ROOT_CERT": "false",
        "TOKEN_REVIEW_CACHE": "0",
        "CA_TRUSTED_NODE_ACCOUNTS": f"{namespace}/ztunnel",
    }
    with cluster_harness.serving_site(
        kube, namespace, tmp_path_factory.mktemp("bridge"), settings
    ) as site:
        for account in ("ztunnel", "other"):
            kube.create_service_account(namespace, account)
            kube.create_pod(namespace, account, service_account=account, node_name=_NODE)
        yield site


@pytest.fixture
def shop(site: Site, namespace: str) -> str:
    """A namespace with a workload on the agent's node, one on another, and one on none."""
    for account, node in (("cart", _NODE), ("vault", _OTHER_NODE), ("pending", None)):
        site.kube.create_service_account(namespace, account)
        site.kube.create_pod(namespace, account, service_account=account, node_name=node)
    return namespace


def token_of(site: Site, account: str, *, pod: str | None) -> str:
    return site.kube.service_account_token(site.namespace, account, audiences=["istio-ca"], pod=pod)


def acted(site: Site, token: str, identity: str) -> list[str]:
    """Return the URIs of the certificate that the CA answers to an agent."""
    metadata = struct_pb2.Struct()
    metadata.update({"ImpersonatedIdentity": identity, "CertSigner": ""})
    key = ec.generate_private_key(ec.SECP256R1())
    with harness.ca_channel(site.bridge) as channel:
        reply = IstioCertificateServiceStub(channel).CreateCertificate(
            ca.IstioCertificateRequest(csr=harness.csr_of(key), metadata=metadata),
            metadata=(("authorization", f"Bearer {token}"), ("clusterid", "Kubernetes")),
            timeout=10,
        )
    leaf = x509.load_pem_x509_certificate(reply.cert_chain[0].encode())
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def refusal(site: Site, token: str, identity: str) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        acted(site, token, identity)
    code: grpc.StatusCode = caught.value.code()
    return code


def spiffe(namespace: str, account: str) -> str:
    return f"spiffe://cluster.local/ns/{namespace}/sa/{account}"


def test_without_the_rights_agents_come_again_and_the_log_names_the_right(
    site: Site, shop: str
) -> None:
    agent = token_of(site, "ztunnel", pod="ztunnel")

    assert refusal(site, agent, spiffe(shop, "cart")) is grpc.StatusCode.UNAVAILABLE
    # The base rights let it get pods of its own namespace, where this agent runs.
    assert "grant list on pods" in site.bridge.log
    cluster_harness.grant_ambient(site.kube, site.namespace)


def test_an_agent_gets_the_identities_of_its_own_node_s_pods_alone(site: Site, shop: str) -> None:
    agent = token_of(site, "ztunnel", pod="ztunnel")

    assert acted(site, agent, spiffe(shop, "cart")) == [spiffe(shop, "cart")]
    issued = site.bridge.log.rpartition("certificate.issued")[2]
    assert f"agent={spiffe(site.namespace, 'ztunnel')}" in issued
    for account in ("vault", "pending", "nobody"):
        assert refusal(site, agent, spiffe(shop, account)) is grpc.StatusCode.PERMISSION_DENIED
    assert refusal(site, agent, "nonsense") is grpc.StatusCode.PERMISSION_DENIED


def test_another_account_on_the_node_or_a_token_without_a_pod_gets_nobody_s(
    site: Site, shop: str
) -> None:
    for token in (token_of(site, "other", pod="other"), token_of(site, "ztunnel", pod=None)):
        assert refusal(site, token, spiffe(shop, "cart")) is grpc.StatusCode.PERMISSION_DENIED


def test_what_has_left_the_node_is_not_given_any_more(site: Site, shop: str) -> None:
    agent = token_of(site, "ztunnel", pod="ztunnel")
    core = client.CoreV1Api(site.kube.admin_client())
    acted(site, agent, spiffe(shop, "cart"))

    core.patch_namespaced_pod_status("cart", shop, {"status": {"phase": "Succeeded"}})
    assert refusal(site, agent, spiffe(shop, "cart")) is grpc.StatusCode.PERMISSION_DENIED
