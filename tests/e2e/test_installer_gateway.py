"""How the gateway is reached, on a real Kubernetes API without a cloud's load balancer."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from kubernetes import client

from tests.e2e.installer_runs import Ran, run_cli
from tests.support.kube import KubeCluster

NAME = "istio-ingressgateway"


@dataclass(frozen=True, slots=True)
class Gate:
    """A namespace with a gateway's Service."""

    folder: Path
    kube: KubeCluster
    namespace: str

    def service(self, kind: str) -> client.V1Service:
        ports = [
            client.V1ServicePort(name="http2", port=80, target_port=8080),
            client.V1ServicePort(name="https", port=443, target_port=8443),
        ]
        return self.core.create_namespaced_service(
            self.namespace,
            client.V1Service(
                metadata=client.V1ObjectMeta(name=NAME),
                spec=client.V1ServiceSpec(type=kind, ports=ports, selector={"istio": "gw"}),
            ),
        )

    @property
    def core(self) -> client.CoreV1Api:
        return client.CoreV1Api(self.kube.admin_client())

    def run(self, *more: str, output: str = "json") -> Ran:
        config = self.folder / "istio-hsm.yaml"
        config.write_text(
            """
apiVersion: istio-hsm/v1
cluster: {suffix: c1}
vault: {address: "https://127.0.0.1:1", caFile: ca.pem}
hsm: {slotLabel: mesh, kekId: kek-1, rootCertFile: r, clientCertFile: c, clientKeyFile: k,
  serverCertFile: s}
"""
        )
        files = ("-f", str(config), "--kubeconfig", str(self.kube.kubeconfig()))
        return run_cli(["expose", *files, "-n", self.namespace, "-o", output, *more], {})


@pytest.fixture
def gate(tmp_path: Path, kube: KubeCluster, namespace: str) -> Gate:
    return Gate(tmp_path, kube, namespace)


@pytest.fixture
def node(kube: KubeCluster, namespace: str) -> Iterator[str]:
    """A node with an address."""
    core = client.CoreV1Api(kube.admin_client())
    name = f"node-{namespace}"
    core.create_node(client.V1Node(metadata=client.V1ObjectMeta(name=name)))
    addresses = [{"type": "InternalIP", "address": "192.168.0.10"}]
    core.patch_node_status(name, {"status": {"addresses": addresses}})
    yield "192.168.0.10"
    core.delete_node(name)


def test_a_manual_balancer_gets_the_table_of_node_ports(gate: Gate, node: str) -> None:
    service = gate.service("NodePort")
    assert service.spec is not None
    http, https = (port.node_port for port in service.spec.ports or [])
    ran = gate.run()
    assert ran.code == 0, ran.err
    rules = {rule["name"]: rule for rule in ran.document["forwards"]}
    assert (rules["http2"]["port"], rules["http2"]["node_port"]) == (80, http)
    assert f"{node}:{https}" in rules["https"]["targets"]
    assert f"{node}:{http}" in gate.run(output="text").out


def test_a_load_balancer_is_asked_for_the_address_and_awaited(gate: Gate) -> None:
    gate.service("LoadBalancer")
    waited = gate.run("--ip", "203.0.113.1", "--wait", "1")
    assert waited.code == 1
    assert "until Service" in waited.err
    spec = gate.core.read_namespaced_service(NAME, gate.namespace).spec
    assert spec is not None
    assert spec.load_balancer_ip == "203.0.113.1"

    ingress = {"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}}}
    gate.core.patch_namespaced_service_status(NAME, gate.namespace, ingress)
    given = gate.run("--ip", "203.0.113.1")
    assert given.code == 0, given.err
    assert given.document["state"] == "given"


@pytest.mark.parametrize(
    ("kind", "arguments", "said"),
    [
        ("ClusterIP", (), "has no node ports"),
        ("NodePort", ("--ip", "203.0.113.1"), "whose address cannot be chosen"),
        ("LoadBalancer", ("--ip", "203.0.113"), "is no IP address"),
        ("ClusterIP", ("--service", "nowhere"), "there is no Service"),
    ],
)
def test_what_cannot_be_is_told(
    gate: Gate, kind: str, arguments: tuple[str, ...], said: str
) -> None:
    gate.service(kind)
    ran = gate.run(*arguments)
    assert ran.code == 1
    assert said in ran.err
