"""One bridge of two workers at a real API server, whose leading worker is killed."""

import json
from pathlib import Path

from kubernetes import client

from istiod_ca_bridge.kube_client import connect
from istiod_ca_bridge.kube_status import KubernetesStatus
from tests.e2e import bridge_replicas
from tests.e2e.bridge_replicas import Replicas
from tests.integration.istiod_ca_bridge import harness
from tests.integration.istiod_ca_bridge.worker_processes import await_workers, kill
from tests.support.figures import figures
from tests.support.kube import KubeCluster


def leading(site: Replicas, name: str) -> int:
    """Return the worker that holds the Lease; 0 while none of this pod's does."""
    leases = client.CoordinationV1Api(site.kube.admin_client())
    try:
        lease = leases.read_namespaced_lease("istiod-ca-bridge", site.namespace)
    except client.ApiException:
        return 0
    holder = (lease.spec.holder_identity or "") if lease.spec else ""
    pod, _, worker = holder.rpartition("_")[0].partition("_")
    return int(worker) if pod == name else 0


def leaders(site: Replicas, name: str) -> list[int]:
    """Return those that say of themselves that they lead."""
    found = figures(site.running[name].environment["METRICS_LISTEN"])
    leads = "istiod_ca_bridge_leader"
    return [it for it in (1, 2) if found.get(f'{leads}{{worker="{it}"}}') == 1]


def kill_leader(site: Replicas, name: str) -> None:
    """Kill the leading worker, and return once the other one leads."""
    site.wait_until(lambda: leading(site, name) > 0, "a leading worker")
    killed = leading(site, name)
    kill(site.running[name], killed)
    site.wait_until(
        lambda: leading(site, name) == 3 - killed and leaders(site, name) == [3 - killed],
        "that the other worker leads",
    )


def reports(site: Replicas) -> list[str]:
    found = site.core.read_namespaced_config_map("istio-hsm-ca-status", site.namespace)
    return sorted(key for key in found.data or {} if key.startswith("replica."))


def test_whichever_worker_leads_is_killed_and_the_other_goes_on(
    kube: KubeCluster, namespace: str, tmp_path: Path
) -> None:
    settings = {"PUBLISH_ROOT_CERT": "false", "ISTIOD_TLS": "false", "CA_WORKERS": "2"}
    with bridge_replicas.replicas(kube, namespace, tmp_path, settings) as site:
        name = site.start()
        csr = site.csr("istio-ca-cert-csr")
        kill_leader(site, name)  # while it waits for its certificate
        site.offer("istio-ca-cert", harness.signed_ca(csr, site.root))
        await_workers(site.running[name], 2)
        site.workload()

        kill_leader(site, name)  # while it serves
        assert site.workload().leaf.issuer == csr.subject
        assert "started" in site.rotation("start").stdout
        await_workers(site.running[name], 2)

        site.wait_until(
            lambda: reports(site) == [f"replica.{name}_1", f"replica.{name}_2"], "two reports"
        )
        assert site.csr("istio-ca-cert-csr-next").public_key() != csr.public_key()
        pod = {event.regarding.name for event in site.events("RotationStarted") if event.regarding}
        assert pod <= {name}
        assert json.loads(site.rotation("status").stdout)["phase"] == "prepare"
        assert site.running[name].stop() == 0
        assert reports(site) == []


async def test_a_workers_report_counts_as_long_as_its_pod_is_there(
    kube: KubeCluster, namespace: str, tmp_path: Path
) -> None:
    with bridge_replicas.replicas(kube, namespace, tmp_path) as site:
        kube.create_pod(namespace, "bridge-1")
        report = json.dumps({"ca": "x", "roots": [], "at": "2020-01-01T00:00:00Z"})
        names = ("bridge-1_1", "bridge-1_2", "gone_1")
        body = client.V1ConfigMap(
            metadata=client.V1ObjectMeta(name="istio-hsm-ca-status"),
            data={f"replica.{name}": report for name in names},
        )
        site.core.create_namespaced_config_map(namespace, body)

        cluster = connect(Path(site.settings["KUBECONFIG"]))
        found = await KubernetesStatus(cluster, namespace, "bridge-1", "").reports()
        assert [it.replica for it in found] == ["bridge-1_1", "bridge-1_2"]
