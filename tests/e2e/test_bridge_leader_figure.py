"""Of several bridges at a real API server, /metrics tells which one leads."""

from pathlib import Path

from kubernetes import client

from tests.e2e import bridge_replicas
from tests.e2e.bridge_replicas import Replicas
from tests.integration.istiod_ca_bridge import harness
from tests.integration.istiod_ca_bridge.cluster_harness import ACCOUNT
from tests.support.figures import figures
from tests.support.kube import KubeCluster


def leaders(site: Replicas) -> list[str]:
    return [
        name
        for name, bridge in site.running.items()
        if figures(bridge.environment["METRICS_LISTEN"])["istiod_ca_bridge_leader"] == 1
    ]


def test_the_replica_that_holds_the_lease_says_that_it_leads_and_after_its_death_the_other_does(
    kube: KubeCluster, namespace: str, tmp_path: Path
) -> None:
    settings = {"PUBLISH_ROOT_CERT": "false", "ISTIOD_TLS": "false"}
    with bridge_replicas.replicas(kube, namespace, tmp_path, settings) as site:
        first = site.start()
        chain = harness.signed_ca(site.csr("istio-ca-cert-csr"), site.root)
        site.offer("istio-ca-cert", chain)
        second = site.start()
        site.await_serving()
        assert (site.leader(), leaders(site)) == (first, [first])

        site.kill(first)
        site.wait_until(lambda: leaders(site) == [second], "another leader")
        assert site.leader() == second


def test_replicas_without_the_right_to_a_lease_all_say_that_they_lead(
    kube: KubeCluster, namespace: str, tmp_path: Path
) -> None:
    """What IstioCaHasSeveralLeaders is about."""
    settings = {"PUBLISH_ROOT_CERT": "false", "ISTIOD_TLS": "false"}
    with bridge_replicas.replicas(kube, namespace, tmp_path, settings) as site:
        rbac = client.RbacAuthorizationV1Api(kube.admin_client())
        role = rbac.read_namespaced_role(ACCOUNT, namespace)
        role.rules = [it for it in role.rules or [] if "leases" not in (it.resources or [])]
        rbac.replace_namespaced_role(ACCOUNT, namespace, role)
        names = [site.start(), site.start()]
        site.wait_until(
            lambda: site.log.count("leader.no_lease") == len(names), "that the right lacks"
        )
        assert leaders(site) == names
