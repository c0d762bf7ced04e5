"""What a bridge tells while things go wrong around it, and that it goes on."""

import secrets
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from kubernetes import client

from tests.e2e import bridge_replicas
from tests.e2e.bridge_replicas import Replicas
from tests.integration.istiod_ca_bridge import harness
from tests.integration.istiod_ca_bridge.cluster_harness import ACCOUNT
from tests.support import pki
from tests.support.kube import KubeCluster


@pytest.fixture(scope="module")
def site(kube: KubeCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    namespace = f"bridge-{secrets.token_hex(4)}"
    kube.create_namespace(namespace)
    settings = {"PUBLISH_ROOT_CERT": "false", "ISTIOD_TLS": "false"}
    with bridge_replicas.replicas(
        kube, namespace, tmp_path_factory.mktemp("bridge"), settings
    ) as site:
        site.start()
        chain = harness.signed_ca(site.csr("istio-ca-cert-csr"), site.root)
        site.offer("istio-ca-cert", chain)
        site.await_serving()
        yield site


def good_chain(site: Replicas, lifetime: timedelta = timedelta(days=30)) -> bytes:
    return harness.signed_ca(site.csr("istio-ca-cert-csr"), site.root, lifetime=lifetime)


def test_all_is_well_reads_so(site: Replicas) -> None:
    for kind, reason in (
        ("Ready", "Serving"),
        ("KeyAvailable", "Available"),
        ("ChainAccepted", "Accepted"),
        ("CertificateFresh", "Fresh"),
        ("Rotating", "Idle"),
    ):
        condition = site.await_condition(kind, reason)
        assert condition["status"] == str(kind != "Rotating")
        assert condition["lastTransitionTime"].endswith("Z")
    values = site.core.read_namespaced_config_map("istio-hsm-ca-status", site.namespace).data or {}
    chain = (site.secret("istio-ca-cert") or {})["cert-chain.pem"]
    assert values["cert-chain.pem"].encode() == chain


def test_a_refused_chain_is_an_event_about_the_pod_and_a_condition_and_the_old_one_serves(
    site: Replicas,
) -> None:
    before = site.workload()
    site.offer(
        "istio-ca-cert", harness.signed_ca(site.csr("istio-ca-cert-csr"), pki.root("Foreign"))
    )

    condition = site.await_condition("ChainAccepted", "Refused")

    assert "the HSM plugin refuses the chain" in condition["message"]
    site.wait_until(lambda: bool(site.events("Refused")), "an Event")
    [event] = site.events("Refused")
    assert event.type == "Warning"
    assert event.regarding is not None
    assert (event.regarding.kind, event.regarding.name) == ("Pod", "bridge-1")
    assert "the HSM plugin refuses the chain" in (event.note or "")
    assert site.workload().chain[1:] == before.chain[1:]

    site.offer("istio-ca-cert", good_chain(site))
    site.await_condition("ChainAccepted", "Accepted")


def test_the_same_fault_again_is_a_series_of_one_event(site: Replicas) -> None:
    foreign = pki.root("Twice")
    wrong = harness.signed_ca(site.csr("istio-ca-cert-csr"), foreign)
    right = good_chain(site)
    seen = len(site.events("Refused"))
    for _ in range(2):
        site.offer("istio-ca-cert", wrong)
        site.await_condition("ChainAccepted", "Refused")
        site.offer("istio-ca-cert", right)
        site.await_condition("ChainAccepted", "Accepted")

    def counted() -> bool:
        return any(event.series and event.series.count >= 2 for event in site.events("Refused"))

    site.wait_until(counted, "a series")
    assert len(site.events("Refused")) <= seen + 1


def test_a_certificate_in_its_last_third_is_asked_for_anew_and_the_answer_is_taken_up(
    site: Replicas,
) -> None:
    # signed_ca starts an hour ago: of 80 minutes, 60 are over.
    site.offer("istio-ca-cert", good_chain(site, timedelta(minutes=20)))
    condition = site.await_condition("CertificateFresh", "RenewalRequested")
    assert "istio-ca-cert-csr-renewal" in condition["message"]

    csr = site.csr("istio-ca-cert-csr-renewal")
    assert csr.public_key() == site.csr("istio-ca-cert-csr").public_key()
    site.offer("istio-ca-cert", harness.signed_ca(csr, site.root))

    site.await_condition("CertificateFresh", "Fresh")
    site.wait_until(lambda: site.secret("istio-ca-cert-csr-renewal") is None, "cleared away")


def test_while_the_api_server_hangs_those_with_a_certificate_are_served(site: Replicas) -> None:
    holder = site.workload()
    [bridge] = site.running.values()
    told = bridge.log.count("ca_chain.not_checked")
    site.kube.pause()
    try:
        bridge.await_log("ca_chain.not_checked", count=told + 1)
        renewed = harness.create_certificate(bridge, client=holder)
    finally:
        site.kube.resume()
    assert renewed.chain[1:] == holder.chain[1:]
    site.offer("istio-ca-cert", good_chain(site, timedelta(days=60)))
    site.wait_until(lambda: site.workload().chain[1] != holder.chain[1], "the new chain")
    site.await_leader()


def test_without_rights_on_leases_and_events_it_comes_to_serve_and_names_what_it_lacks(
    kube: KubeCluster, namespace: str, tmp_path: Path
) -> None:
    settings = {"PUBLISH_ROOT_CERT": "false", "ISTIOD_TLS": "false"}
    with bridge_replicas.replicas(kube, namespace, tmp_path, settings) as site:
        rbac = client.RbacAuthorizationV1Api(kube.admin_client())
        role = rbac.read_namespaced_role(ACCOUNT, namespace)
        role.rules = [it for it in role.rules or [] if (it.api_groups or [""])[0] == ""]
        rbac.replace_namespaced_role(ACCOUNT, namespace, role)
        site.start()
        site.offer("istio-ca-cert", good_chain(site))
        site.await_serving()
        site.workload()

        assert "grant get on leases istiod-ca-bridge" in site.log
        site.wait_until(lambda: "grant create on events" in site.log, "the right that lacks")
