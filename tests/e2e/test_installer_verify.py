"""What is judged after the ceremony, and injection, on a real Kubernetes API."""

import base64
from datetime import timedelta
from pathlib import Path

import pytest
from kubernetes import client

from tests.e2e.installer_runs import Ran, run_cli
from tests.support import pki
from tests.support.kube import KubeCluster

LABELS = {"app": "istiod", "istio.io/rev": "asm-1106-2"}


class Mesh:
    """A namespace that holds what a control plane leaves there."""

    def __init__(self, folder: Path, kube: KubeCluster, namespace: str) -> None:
        self.kube, self.namespace = kube, namespace
        self.core = client.CoreV1Api(kube.admin_client())
        self.apps = client.AppsV1Api(kube.admin_client())
        self.config = folder / "istio-hsm.yaml"
        self.config.write_text(
            f"""
apiVersion: istio-hsm/v1
cluster: {{suffix: c1}}
vault: {{address: "https://127.0.0.1:1", caFile: ca.pem}}
hsm: {{slotLabel: mesh, kekId: kek-1, rootCertFile: r, clientCertFile: c, clientKeyFile: k,
  serverCertFile: s}}
istio: {{namespace: {namespace}}}
"""
        )

    def run(self, *command: str) -> Ran:
        files = ("-f", str(self.config), "--kubeconfig", str(self.kube.kubeconfig()))
        return run_cli([*command, *files, "-o", "json"], {})

    def forget_other_roots(self) -> None:
        """Remove what other tests published: `verify` looks into every namespace."""
        published = self.core.list_config_map_for_all_namespaces(
            field_selector="metadata.name=istio-ca-root-cert"
        )
        for entry in published.items:
            if entry.metadata and entry.metadata.name and entry.metadata.namespace:
                self.core.delete_namespaced_config_map(
                    entry.metadata.name, entry.metadata.namespace
                )

    def deployment(self, name: str) -> None:
        template = client.V1PodTemplateSpec(
            metadata=client.V1ObjectMeta(labels={"app": name}),
            spec=client.V1PodSpec(containers=[client.V1Container(name="app", image="app:1")]),
        )
        spec = client.V1DeploymentSpec(
            selector=client.V1LabelSelector(match_labels={"app": name}), template=template
        )
        body = client.V1Deployment(metadata=client.V1ObjectMeta(name=name), spec=spec)
        self.apps.create_namespaced_deployment(self.namespace, body)


@pytest.fixture
def mesh(tmp_path: Path, kube: KubeCluster, namespace: str) -> Mesh:
    mesh = Mesh(tmp_path, kube, namespace)
    mesh.forget_other_roots()
    return mesh


def said(ran: Ran) -> dict[str, tuple[bool, str]]:
    return {point["name"]: (point["is_fine"], point["said"]) for point in ran.document["points"]}


def test_nothing_installed_is_five_findings(mesh: Mesh) -> None:
    verified = mesh.run("verify")
    assert verified.code == 79, verified.err
    assert said(verified)["pods"] == (False, "there is no pod of istiod")
    assert said(verified)["chain"] == (False, "istio-ca-cert is not there")
    assert said(verified)["injection webhook"] == (False, "none of revision asm-1106-2")


def test_a_ready_pod_and_the_same_root_are_fine_and_another_root_is_not(mesh: Mesh) -> None:
    mesh.kube.create_pod(mesh.namespace, "istiod-1", labels=LABELS)
    ready = {"name": "app", "ready": True, "image": "x", "imageID": "x", "restartCount": 0}
    mesh.core.patch_namespaced_pod_status(
        "istiod-1", mesh.namespace, {"status": {"containerStatuses": [ready]}}
    )
    root = pki.root(valid_until=pki.MOMENT + timedelta(days=400))
    chain = pki.intermediate(root).pem + root.pem
    mesh.core.create_namespaced_secret(
        mesh.namespace,
        client.V1Secret(
            metadata=client.V1ObjectMeta(name="istio-ca-cert"),
            data={"cert-chain.pem": base64.b64encode(chain).decode()},
        ),
    )
    published = client.V1ConfigMap(
        metadata=client.V1ObjectMeta(name="istio-ca-root-cert"),
        data={"root-cert.pem": root.pem.decode()},
    )
    mesh.core.create_namespaced_config_map(mesh.namespace, published)
    points = said(mesh.run("verify"))
    assert points["pod istiod-1"] == (True, "1/1")
    assert points["certificate CN=Mesh Root"][0]
    assert not points["certificate CN=Mesh CA"][0]  # it lives for a day
    assert points["root in namespaces"][0]

    mesh.core.patch_namespaced_config_map(
        "istio-ca-root-cert",
        mesh.namespace,
        {"data": {"root-cert.pem": pki.root().pem.decode()}},
    )
    points = said(mesh.run("verify"))
    assert points["root in namespaces"] == (False, f"another root in: {mesh.namespace}")
    mesh.core.delete_namespaced_config_map("istio-ca-root-cert", mesh.namespace)


def test_injection_moves_a_namespace_to_the_revision_and_restarts_it(mesh: Mesh) -> None:
    mesh.core.patch_namespace(
        mesh.namespace, {"metadata": {"labels": {"istio-injection": "enabled"}}}
    )
    mesh.deployment("web")
    injected = mesh.run("inject", mesh.namespace, "--wait", "0")
    assert injected.code == 0, injected.err
    assert injected.document["restarted"] == "web"
    metadata = mesh.core.read_namespace(mesh.namespace).metadata
    assert metadata is not None
    assert metadata.labels is not None
    assert metadata.labels["istio.io/rev"] == "asm-1106-2"
    assert "istio-injection" not in metadata.labels
    spec = mesh.apps.read_namespaced_deployment("web", mesh.namespace).spec
    assert spec is not None
    assert spec.template.metadata is not None
    assert "kubectl.kubernetes.io/restartedAt" in (spec.template.metadata.annotations or {})


def test_the_wait_for_new_pods_says_which_are_awaited(mesh: Mesh) -> None:
    mesh.deployment("web")
    injected = mesh.run("inject", mesh.namespace, "--wait", "1")
    assert injected.code == 1
    assert "waiting for web 0/1" in injected.err
    assert "after 1 s the pods are not all replaced: web 0/1" in injected.err

    found = mesh.apps.read_namespaced_deployment("web", mesh.namespace)
    assert found.metadata is not None
    assert found.metadata.generation is not None
    status = {"updatedReplicas": 1, "availableReplicas": 1, "replicas": 1, "readyReplicas": 1}
    mesh.apps.patch_namespaced_deployment_status(
        "web",
        mesh.namespace,
        {"status": {**status, "observedGeneration": found.metadata.generation}},
    )
    done = mesh.run("inject", mesh.namespace, "--no-restart")
    assert done.code == 0, done.err
    assert done.document["restarted"] == ""


def test_a_namespace_that_is_not_there_is_told(mesh: Mesh) -> None:
    refused = mesh.run("inject", "nowhere-at-all")
    assert refused.code == 1
    assert refused.err.startswith("error: there is no namespace nowhere-at-all")
