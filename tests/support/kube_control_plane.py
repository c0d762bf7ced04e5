"""etcd, kube-apiserver and kube-controller-manager on loopback ports, in a folder of their own."""

import http.client
import json
import random
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.support.kube_binaries import KubeBinaries
from tests.support.kube_pki import Authority, KeyPairFiles, make_token_signing_keys
from tests.support.kube_process import Child, ChildError

ISSUER = "https://kubernetes.default.svc.cluster.local"
"""The issuer of ServiceAccount tokens, and the audience of a token that asks for none."""

_HOST = "127.0.0.1"
_CONTROLLERS = (
    "serviceaccount-controller",
    "serviceaccount-token-controller",
    "root-ca-certificate-publisher-controller",
    "namespace-controller",
    "garbage-collector-controller",
    "certificatesigningrequest-cleaner-controller",
)
# Below the range that the kernel gives to outgoing connections: one of those could otherwise take
# the API server's port while a test has it stopped.
_PORTS = range(20000, 32000)
_POLL_S = 0.05


class ControlPlane:
    """The processes of a cluster without nodes; knows nothing of what is stored in it."""

    def __init__(self, binaries: KubeBinaries, folder: Path) -> None:
        self._folder = folder
        self.pki = folder / "pki"
        self.pki.mkdir()
        self.authority = Authority.create(self.pki)
        etcd_port, peer_port, self._port = _free_ports(3)
        self._admin = self.authority.issue_client("admin", "admin", ["system:masters"])
        self._etcd = self._make_etcd(binaries.etcd, etcd_port, peer_port)
        self._apiserver, self._controllers = self._make_kube(binaries, etcd_port)

    @property
    def server(self) -> str:
        return f"https://{_HOST}:{self._port}"

    def start(self, deadline_s: float) -> None:
        """Return when the API server is ready; raises ChildError with the logs' tails."""
        self._etcd.start()
        self.start_apiserver(deadline_s)
        self._controllers.start()

    def start_apiserver(self, deadline_s: float) -> None:
        """Return when the API server is ready, on the same port and data as before."""
        self._apiserver.start()
        self.wait_until("the API server is ready", self._is_ready, deadline_s)

    def stop_apiserver(self) -> None:
        """Return when the port refuses connections, as in a crash; etcd keeps the data."""
        self._apiserver.kill()

    def pause_apiserver(self) -> None:
        self._apiserver.pause()

    def resume_apiserver(self) -> None:
        self._apiserver.resume()

    def kill(self) -> None:
        """End every process that this object started; nothing is flushed, the folder is over."""
        for child in self._children:
            child.kill()

    def pids(self) -> Mapping[str, int]:
        """Return the running processes by name."""
        return {child.name: child.pid for child in self._children if child.pid is not None}

    def logs(self, lines: int = 30) -> str:
        """Return the tail of every process's log."""
        return "\n".join(child.log_tail(lines) for child in self._children)

    def wait_until(self, what: str, happened: Callable[[], bool], deadline_s: float) -> None:
        """Return when `happened`; past the deadline, or if a process died, raise ChildError."""
        deadline = time.monotonic() + deadline_s
        while not happened():
            self._apiserver.check()
            self._etcd.check()
            if time.monotonic() > deadline:
                raise ChildError(f"not within {deadline_s:.0f} s: {what}\n{self.logs()}")
            time.sleep(_POLL_S)

    def write_kubeconfig(self, name: str, user: Mapping[str, str]) -> Path:
        """Return a kubeconfig (JSON, which is YAML) whose one user has these credentials."""
        cluster = {"server": self.server, "certificate-authority": str(self.pki / "ca.crt")}
        path = self._folder / f"{name}.kubeconfig"
        path.touch(mode=0o600)
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "test", "cluster": cluster}],
                    "users": [{"name": name, "user": user}],
                    "contexts": [{"name": "test", "context": {"cluster": "test", "user": name}}],
                    "current-context": "test",
                },
                indent=2,
            )
        )
        return path

    @property
    def _children(self) -> tuple[Child, ...]:
        return (self._controllers, self._apiserver, self._etcd)

    def _is_ready(self) -> bool:
        tls = ssl.create_default_context(cafile=str(self.authority.certificate_file))
        tls.load_cert_chain(self._admin.certificate, self._admin.key)
        connection = http.client.HTTPSConnection(_HOST, self._port, timeout=2, context=tls)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _make_etcd(self, program: Path, client_port: int, peer_port: int) -> Child:
        client, peer = f"http://{_HOST}:{client_port}", f"http://{_HOST}:{peer_port}"
        flags = {
            "name": "test",
            "data-dir": self._folder / "etcd",
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"test={peer}",
            # A killed process loses nothing by it, only a killed machine would.
            "unsafe-no-fsync": "true",
        }
        return self._child("etcd", program, flags)

    def _make_kube(self, binaries: KubeBinaries, etcd_port: int) -> tuple[Child, Child]:
        token_key, token_public_key = make_token_signing_keys(self.pki)
        serving = self.authority.issue_server(
            "kube-apiserver", [_HOST, "localhost", "kubernetes.default.svc"]
        )
        apiserver = {
            "etcd-servers": f"http://{_HOST}:{etcd_port}",
            "bind-address": _HOST,
            "advertise-address": _HOST,
            "secure-port": self._port,
            # It would publish the loopback address as the Service's endpoint, which is refused.
            "endpoint-reconciler-type": "none",
            "anonymous-auth": "false",
            "authorization-mode": "RBAC",
            "allow-privileged": "true",
            "service-cluster-ip-range": "10.96.0.0/16",
            "service-account-issuer": ISSUER,
            # Only what the API itself accepts: a TokenReview names other audiences explicitly.
            "api-audiences": ISSUER,
            "service-account-signing-key-file": token_key,
            "service-account-key-file": token_public_key,
            "client-ca-file": self.authority.certificate_file,
            "tls-cert-file": serving.certificate,
            "tls-private-key-file": serving.key,
        }
        controllers = {
            "kubeconfig": self._controllers_kubeconfig(),
            "controllers": ",".join(_CONTROLLERS),
            "leader-elect": "false",
            "secure-port": 0,
            "use-service-account-credentials": "true",
            "root-ca-file": self.authority.certificate_file,
            "service-account-private-key-file": token_key,
        }
        return (
            self._child("kube-apiserver", binaries.apiserver, apiserver),
            self._child("kube-controller-manager", binaries.controller_manager, controllers),
        )

    def _controllers_kubeconfig(self) -> Path:
        user = "system:kube-controller-manager"
        files = self.authority.issue_client("kube-controller-manager", user, [])
        return self.write_kubeconfig("kube-controller-manager", client_certificate(files))

    def _child(self, name: str, program: Path, flags: Mapping[str, object]) -> Child:
        argv = [str(program), *(f"--{flag}={value}" for flag, value in flags.items())]
        return Child(name, argv, self._folder / f"{name}.log")


def client_certificate(files: KeyPairFiles) -> dict[str, str]:
    """Return a kubeconfig user that authenticates with a client certificate."""
    return {"client-certificate": str(files.certificate), "client-key": str(files.key)}


def _free_ports(count: int) -> list[int]:
    """Return distinct loopback ports that nothing listens on now."""
    ports: list[int] = []
    for port in random.sample(_PORTS, k=len(_PORTS)):
        with socket.socket() as probe:
            try:
                probe.bind((_HOST, port))
            except OSError:
                continue
        ports.append(port)
        if len(ports) == count:
            break
    return ports
