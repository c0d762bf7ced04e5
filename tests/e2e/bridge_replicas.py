"""Several bridges of one mesh on a real API server, killed and started at will."""

import base64
import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from cryptography import x509
from kubernetes import client

from istio_hsm_proto import kms_istio_v1_pb2 as kms
from istiod_ca_bridge.rotation import Phase
from tests.integration.istiod_ca_bridge import cluster_harness, harness
from tests.support import pki, plugin, softhsm
from tests.support.faults import FaultyHsm, make_faulty
from tests.support.kube import KubeCluster

_SECONDS = 90.0
LEASE_SECONDS = 3


@dataclass(slots=True)
class Replicas:
    """The processes by the name of their pod, and what they share."""

    kube: KubeCluster
    namespace: str
    folder: Path
    token: softhsm.SoftHsm
    hsm: plugin.Plugin
    root: pki.Issued
    settings: Mapping[str, str]
    faults: FaultyHsm
    """By which the HSM goes and comes back, its plugin and its keys as they were."""

    running: dict[str, harness.Bridge] = field(default_factory=dict)
    started: int = 0
    killed_at: set[str] = field(default_factory=set)
    """The states in which a leader was killed."""

    @property
    def core(self) -> client.CoreV1Api:
        return client.CoreV1Api(self.kube.admin_client())

    def start(self) -> str:
        """Start one more."""
        self.started += 1
        name = f"bridge-{self.started}"
        folder = self.folder / name
        folder.mkdir()
        pod = self.kube.create_pod(self.namespace, name)
        assert pod.metadata is not None
        own = {"POD_NAME": name, "POD_UID": pod.metadata.uid or ""}
        self.running[name] = harness.start_bridge(
            folder, self.hsm.socket, dict(self.settings) | own
        )
        return name

    def kill(self, name: str) -> harness.Bridge:
        """SIGKILL one, as with its pod, and return what is left of it."""
        bridge = self.running.pop(name)
        bridge.kill()
        self.core.delete_namespaced_pod(name, self.namespace, grace_period_seconds=0)
        return bridge

    def revive_hsm(self) -> None:
        """Start the killed plugin again, on the same socket."""
        self.hsm = plugin.start(
            self.token, self.hsm.socket.parent, environment=self.faults.environment()
        )
        self.hsm.await_health(plugin.SERVING)

    def leader(self) -> str:
        """Return the name of the leading replica that runs; empty while there is none."""
        try:
            lease = client.CoordinationV1Api(self.kube.admin_client()).read_namespaced_lease(
                "istiod-ca-bridge", self.namespace
            )
        except client.ApiException as error:
            if error.status == 404:
                return ""
            raise
        holder = (lease.spec.holder_identity or "") if lease.spec else ""
        name = holder.rpartition("_")[0]
        return name if name in self.running else ""

    def await_leader(self) -> str:
        self.wait_until(lambda: bool(self.leader()), "a leader")
        return self.leader()

    def kill_leader_when(
        self, condition: Callable[[], bool], *states: str, phase: Phase | None = None
    ) -> None:
        """Kill the leader as soon as it is in a state, and start another replica instead.

        `phase`: of the rotation, where the states are of one; it is looked up once the leader is
        dead, so that none is named in which nobody died.
        """
        self.wait_until(condition, ", ".join(states) or str(phase))
        self.kill(self.await_leader())
        self.killed_at |= set(states)
        if phase is not None:
            assert self.rotation_has("phase", phase.value)(), f"it went on before it died: {phase}"
            self.killed_at.add(phase.value)
        self.start()

    def says(self, text: str) -> Callable[[], bool]:
        """Return what tells whether the leader has logged this."""

        def tells() -> bool:
            name = self.leader()
            return bool(name) and text in self.running[name].log

        return tells

    def has(self, name: str) -> Callable[[], bool]:
        """Return what tells whether a Secret is there."""
        return lambda: self.secret(name) is not None

    def rotation_has(self, key: str, value: str = "") -> Callable[[], bool]:
        """Return what tells whether the rotation's record says so; or anything, without a value."""

        def tells() -> bool:
            found = (self.secret("istio-ca-rotation") or {}).get(key, b"").decode()
            return found == value if value else bool(found)

        return tells

    @property
    def log(self) -> str:
        """What all replicas that ever ran have logged."""
        return "".join(path.read_text() for path in sorted(self.folder.glob("*/bridge.log")))

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + _SECONDS
        while not condition():
            for name, bridge in self.running.items():
                if bridge.process.poll() is not None:
                    raise harness.BridgeError(f"{name} ended before {what}\n{bridge.log}")
            if time.monotonic() >= end:
                raise harness.BridgeError(f"no {what} within {_SECONDS} s\n{self.log}")
            time.sleep(0.05)

    def secret(self, name: str) -> dict[str, bytes] | None:
        try:
            found = self.core.read_namespaced_secret(name, self.namespace)
        except client.ApiException as error:
            if error.status == 404:
                return None
            raise
        return {key: base64.b64decode(value) for key, value in (found.data or {}).items()}

    def patch(self, name: str, **values: str) -> None:
        data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
        self.core.patch_namespaced_secret(name, self.namespace, {"data": data})

    def csr(self, secret: str) -> x509.CertificateSigningRequest:
        """Wait for a CSR's Secret and decrypt it, as `hsm-plugin decrypt-csr` does."""
        self.wait_until(lambda: self.secret(secret) is not None, secret)
        values = self.secret(secret) or {}
        with self.hsm.keys() as keys:
            reply = keys.AuthenticatedDecrypt(
                kms.AuthenticatedDecryptRequest(
                    kek_kid=values["kek-id"],
                    encrypted_dek_blob=values["encrypted-dek"],
                    ciphertext=values["encrypted-csr"],
                    aad=values["csr-id"],
                ),
                timeout=10,
            )
        return x509.load_pem_x509_csr(reply.plaintext)

    def offer(self, secret: str, chain: bytes) -> None:
        """Write a chain to a Secret, new or not."""
        data = {"cert-chain.pem": base64.b64encode(chain).decode()}
        body = client.V1Secret(metadata=client.V1ObjectMeta(name=secret), data=dict(data))
        if self.secret(secret) is None:
            self.core.create_namespaced_secret(self.namespace, body)
        else:
            self.core.patch_namespaced_secret(secret, self.namespace, {"data": data})

    def await_serving(self) -> None:
        for bridge in self.running.values():
            bridge.await_serving()

    def workload(self, *, by: harness.Workload | None = None) -> harness.Workload:
        """Have any replica that serves issue a certificate, as an agent that comes again does."""
        found: list[harness.Workload] = []
        token = self.kube.service_account_token(self.namespace, "default", audiences=["istio-ca"])

        def is_issued() -> bool:
            bridge = next(iter(self.running.values()))
            try:
                found.append(harness.create_certificate(bridge, client=by, token=token))
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
            except FileNotFoundError:
                pass  # it has not come to serve yet
            return bool(found)

        self.wait_until(is_issued, "a certificate")
        return found[-1]

    def conditions(self) -> dict[str, dict[str, str]]:
        """Return the conditions of the status ConfigMap by their types."""
        try:
            found = self.core.read_namespaced_config_map("istio-hsm-ca-status", self.namespace)
        except client.ApiException:
            return {}
        listed = json.loads((found.data or {}).get("conditions.json", "[]"))
        return {entry["type"]: entry for entry in listed}

    def await_condition(self, kind: str, reason: str) -> dict[str, str]:
        self.wait_until(
            lambda: self.conditions().get(kind, {}).get("reason") == reason, f"{kind}: {reason}"
        )
        return self.conditions()[kind]

    def events(self, reason: str) -> list[client.EventsV1Event]:
        listed = client.EventsV1Api(self.kube.admin_client()).list_namespaced_event(self.namespace)
        return [event for event in listed.items if event.reason == reason]

    @contextmanager
    def asking(self, *arguments: str) -> Iterator[None]:
        """Run `istiod-ca-bridge rotation …` meanwhile; it is answered with done."""
        with ThreadPoolExecutor(1) as thread:
            answer = thread.submit(self.rotation, *arguments)
            yield
            done = answer.result()
        assert done.stdout.startswith("done"), done.stderr + self.log

    def rotation(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `istiod-ca-bridge rotation …` as in a pod of the bridge."""
        bridge = next(iter(self.running.values()))
        return subprocess.run(
            [plugin.program("istiod-ca-bridge"), "rotation", *arguments],
            env=dict(bridge.environment),
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )


@contextmanager
def replicas(
    kube: KubeCluster, namespace: str, folder: Path, environment: Mapping[str, str] | None = None
) -> Iterator[Replicas]:
    """A mesh with the documented rights, a plugin, and no bridge yet."""
    cluster_harness.grant(kube, namespace)
    token = softhsm.make_token(folder / "token")
    root = harness.strict_root()
    settings = {
        "BRIDGE_STORE": "kubernetes",
        "KUBECONFIG": str(kube.service_account_kubeconfig(namespace, cluster_harness.ACCOUNT)),
        "POD_NAMESPACE": namespace,
        "CA_KEY_ALGORITHM": "ecdsa-p256",
        "LEADER_LEASE_DURATION": f"{LEASE_SECONDS}s",
    } | dict(environment or {})
    (folder / "bridges").mkdir()
    try:
        faults = make_faulty(token)
        with plugin.running(token, folder / "plugin", environment=faults.environment()) as running:
            harness.prepare(running, root)
            made = Replicas(
                kube, namespace, folder / "bridges", token, running, root, settings, faults
            )
            try:
                yield made
            finally:
                for name in tuple(made.running):
                    made.kill(name)
                faults.heal()
                made.hsm.kill()
    finally:
        cluster_harness.revoke(kube, namespace)
