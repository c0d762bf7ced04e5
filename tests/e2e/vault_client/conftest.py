"""OpenBao whose Kubernetes auth asks a real kube-apiserver's TokenReview, and a mesh in it."""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.hsm_credentials import make_credentials
from tests.support.kube import KubeCluster
from tests.support.openbao import OpenBao
from tests.support.vault_client import ClientProcess, memory_folder

AUDIENCE = "vault"


@dataclass(frozen=True, slots=True)
class Mesh:
    """The guide's set-up, in a namespace and under mounts of its own."""

    kube: KubeCluster
    bao: OpenBao
    namespace: str
    folder: Path
    output: Path

    @property
    def auth(self) -> str:
        return f"auth/{self.namespace}/hsm"

    def environment(self, **more: str) -> dict[str, str]:
        """Return the settings of a client that works, with some replaced."""
        return {
            "VAULT_ADDR": self.bao.address,
            "VAULT_CACERT": str(self.bao.ca_file),
            "VAULT_AUTH_PATH": f"{self.auth}/login",
            "VAULT_AUTH_AUDIENCE": AUDIENCE,
            "VAULT_ROLE": "istiod",
            "VAULT_AUTH_JWT_PATH": str(self.folder / "jwt"),
            "VAULT_KV_PATH": f"{self.namespace}/istiod",
            "OUTPUT_DIR": str(self.output),
            "POLL_INTERVAL": "200ms",
            "ONCE_TIMEOUT": "100ms",
            "RETRY_MAX_INTERVAL": "500ms",
            **more,
        }

    def client(self, **more: str) -> ClientProcess:
        log = self.folder / f"client-{secrets.token_hex(4)}.log"
        return ClientProcess(self.environment(**more), log)

    def write_jwt(self, account: str = "istiod", audience: str = AUDIENCE) -> None:
        token = self.kube.service_account_token(self.namespace, account, audiences=[audience])
        (self.folder / "jwt").write_text(token)

    def set_auth(self, **more: object) -> None:
        """Configure the auth method, with some settings replaced."""
        config = {
            "kubernetes_host": self.kube.server,
            "kubernetes_ca_cert": self.kube.ca_pem,
            **more,
        }
        self.bao.write(f"{self.auth}/config", config)

    def set_role(self, **more: object) -> None:
        role = {
            "bound_service_account_names": ["istiod"],
            "bound_service_account_namespaces": [self.namespace],
            "audience": AUDIENCE,
            "policies": [self.namespace],
            "ttl": "1h",
            **more,
        }
        self.bao.write(f"{self.auth}/role/istiod", role)

    def pod(self, folder: Path, account: str = "istiod") -> dict[str, str]:
        """Return what a pod is given to reach its API server, under `folder`."""
        host, _, port = self.kube.server.removeprefix("https://").rpartition(":")
        folder.mkdir()
        (folder / "token").write_text(self.kube.service_account_token(self.namespace, account))
        (folder / "ca.crt").write_text(self.kube.ca_pem)
        (folder / "namespace").write_text(self.namespace)
        return {
            "KUBERNETES_SERVICE_HOST": host,
            "KUBERNETES_SERVICE_PORT": port,
            "KUBERNETES_SERVICE_ACCOUNT_DIR": str(folder),
        }


@pytest.fixture(scope="session")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    server = OpenBao(tmp_path_factory.mktemp("bao"))
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def mesh(kube: KubeCluster, namespace: str, bao: OpenBao, tmp_path: Path) -> Iterator[Mesh]:
    """A mesh whose client can do its work."""
    kube.create_service_account(namespace, "istiod")
    with memory_folder() as output:
        made = Mesh(kube, bao, namespace, tmp_path, output)
        bao.write(f"sys/auth/{namespace}/hsm", {"type": "kubernetes"})
        made.set_auth(token_reviewer_jwt=kube.reviewer_token(namespace))
        made.set_role()
        bao.enable_kv(namespace, 2)
        bao.allow(namespace, {f"{namespace}/data/istiod": "read"})
        bao.put_v2(namespace, "istiod", make_credentials())
        made.write_jwt()
        yield made
