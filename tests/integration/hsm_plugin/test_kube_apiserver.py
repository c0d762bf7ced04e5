"""A real kube-apiserver keeps its Secrets in etcd under a KEK of the token, through a rotation."""

import base64
import json
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from kubernetes import client

from istio_hsm_proto import kms_istio_v1_pb2 as mesh
from istio_hsm_proto import kms_kubernetes_v2_pb2 as v2
from istio_hsm_proto.kms_kubernetes_v2_pb2_grpc import KeyManagementServiceStub
from tests.support import kube_binaries
from tests.support import plugin as plugins
from tests.support.kube_binaries import KubeBinaries
from tests.support.kube_control_plane import ControlPlane
from tests.support.kube_process import Child
from tests.support.plugin import Plugin
from tests.support.softhsm import SoftHsm

_START_SECONDS = 60.0
_CANARY = "canary-of-a-secret"


class EncryptingControlPlane(ControlPlane):
    """A control plane whose API server encrypts Secrets by the plugin on a socket."""

    def __init__(self, binaries: KubeBinaries, folder: Path, socket: Path) -> None:
        provider = {
            "apiVersion": "v2",
            "name": "hsm",
            "endpoint": f"unix://{socket}",
            "timeout": "3s",
        }
        self._encryption = folder / "encryption.json"
        self._encryption.write_text(
            json.dumps(
                {
                    "apiVersion": "apiserver.config.k8s.io/v1",
                    "kind": "EncryptionConfiguration",
                    "resources": [{"resources": ["secrets"], "providers": [{"kms": provider}]}],
                }
            )
        )
        self.etcd_url = ""
        super().__init__(binaries, folder)

    def _child(self, name: str, program: Path, flags: Mapping[str, object]) -> Child:
        if name == "kube-apiserver":
            self.etcd_url = str(flags["etcd-servers"])
            flags = {**flags, "encryption-provider-config": self._encryption}
        return super()._child(name, program, flags)

    def secrets(self) -> client.CoreV1Api:
        files = self.authority.issue_client("reader", "reader", ["system:masters"])
        settings = client.Configuration(
            host=self.server,
            ssl_ca_cert=str(self.authority.certificate_file),
            cert_file=str(files.certificate),
            key_file=str(files.key),
        )
        settings.proxy = None
        return client.CoreV1Api(client.ApiClient(settings))

    def stored(self, name: str) -> bytes:
        """Return what etcd holds of a Secret."""
        key = base64.b64encode(f"/registry/secrets/default/{name}".encode()).decode()
        request = urllib.request.Request(  # noqa: S310 - etcd on loopback
            f"{self.etcd_url}/v3/kv/range", data=json.dumps({"key": key}).encode()
        )
        with urllib.request.urlopen(request, timeout=5) as response:  # noqa: S310 - as above
            return base64.b64decode(json.load(response)["kvs"][0]["value"])


@contextmanager
def cluster(folder: Path, socket: Path) -> Iterator[EncryptingControlPlane]:
    folder.mkdir()
    plane = EncryptingControlPlane(kube_binaries.resolve(), folder, socket)
    try:
        plane.start(_START_SECONDS)
        yield plane
    finally:
        plane.kill()


def make_kek(plugin: Plugin, kek_id: bytes) -> None:
    with plugin.keys() as keys:
        keys.GenerateKEK(mesh.GenerateKEKRequest(kek_kid=kek_id))


def create(api: client.CoreV1Api, name: str) -> None:
    secret = client.V1Secret(metadata=client.V1ObjectMeta(name=name), string_data={"text": _CANARY})
    api.create_namespaced_secret("default", secret)


def text_of(api: client.CoreV1Api, name: str) -> str:
    data = api.read_namespaced_secret(name, "default").data or {}
    return base64.b64decode(data["text"]).decode()


def test_secrets_are_encrypted_in_etcd_and_survive_a_new_kek(
    hsm: SoftHsm, folder: Path, tmp_path: Path
) -> None:
    with plugins.running(hsm, folder, arguments=["--kms-kek-id", "etcd-1"]) as plugin:
        make_kek(plugin, b"etcd-1")
        make_kek(plugin, b"etcd-2")
        with cluster(tmp_path / "kube", plugin.socket) as plane:
            api = plane.secrets()
            create(api, "first")
            stored = plane.stored("first")
            assert stored.startswith(b"k8s:enc:kms:v2:hsm:")
            assert b"etcd-1" in stored
            assert _CANARY.encode() not in stored
            assert text_of(api, "first") == _CANARY

            plugin.stop()
            plane.stop_apiserver()
            with plugins.running(hsm, folder, arguments=["--kms-kek-id", "etcd-2"]) as rotated:
                with rotated.channel() as channel:
                    status = KeyManagementServiceStub(channel).Status(v2.StatusRequest())
                    assert (status.healthz, status.key_id) == ("ok", "etcd-2")
                plane.start_apiserver(_START_SECONDS)
                create(api, "second")
                assert b"etcd-2" in plane.stored("second")
                assert text_of(api, "first") == text_of(api, "second") == _CANARY
