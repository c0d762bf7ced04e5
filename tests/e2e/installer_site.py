"""An operator's folder, and the servers that it is about: all real but istioctl."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kubernetes import client

from tests.e2e.installer_runs import Ran, run_cli
from tests.support import pki
from tests.support.hsm_credentials import make_credentials
from tests.support.kube import KubeCluster
from tests.support.openbao import OpenBao
from tests.support.plugin import Plugin

_ISTIOCTL = """#!{python}
import json, os, sys
from kubernetes import client, config
arguments = sys.argv[1:]
with open({log!r}, "a") as file:
    file.write(json.dumps(dict(arguments=arguments, environment=sorted(os.environ))) + "\\n")
options = dict(zip(arguments, arguments[1:]))
config.load_kube_config(options["--kubeconfig"])
apps = client.AppsV1Api()
if "uninstall" in arguments:
    apps.delete_namespaced_deployment("istiod-" + options["--revision"], {namespace!r})
    sys.exit(0)
values = dict(
    entry.split("=", 1) for flag, entry in zip(arguments, arguments[1:]) if flag == "--set"
)
def container(name, image, **environment):
    variables = [dict(name=key, value=value) for key, value in environment.items()]
    return dict(name=name, image=image, env=variables)
hsm = dict((name.rpartition(".")[2], value) for name, value in values.items())
containers = [
    container("discovery", "istio/pilot", KEY_MANAGEMENT_KEY_ID=hsm["hsmKEKID"]),
    container("hsm-plugin", hsm["hsmPluginImage"], P11_TOKEN=hsm["hsmSlotLabel"]),
    container(
        "vaultclient", hsm["vaultClientImage"], VAULT_ADDR=hsm["vaultAddr"],
        VAULT_AUTH_PATH=hsm["vaultAuthPath"], VAULT_ROLE=hsm["vaultAuthRole"],
        VAULT_KV_PATH=hsm["vaultSecretPath"],
    ),
]
labels = dict([("app", "istiod"), ("istio.io/rev", values["revision"])])
body = dict(
    metadata=dict(name="istiod-" + values["revision"], labels=labels),
    spec=dict(
        selector=dict(matchLabels=labels),
        template=dict(metadata=dict(labels=labels), spec=dict(containers=containers)),
    ),
)
try:
    apps.create_namespaced_deployment({namespace!r}, body)
except client.ApiException as error:
    if error.status != 409:
        raise
    apps.replace_namespaced_deployment(body["metadata"]["name"], {namespace!r}, body)
sys.exit("timed out waiting for istiod to be ready")
"""


BESIDE_THE_HSM = ("--only", "kubernetes", "--only", "vault", "--only", "istio")
"""The areas of most tests: those of the HSM start a program for each look at it."""


class Site:
    """One installation with names of its own in the shared cluster."""

    def __init__(self, folder: Path, kube: KubeCluster, bao: OpenBao, plugin: Plugin) -> None:
        self.areas: tuple[str, ...] = ()
        self.folder, self.kube, self.bao, self.plugin = folder, kube, bao, plugin
        self.suffix = f"c{secrets.token_hex(3)}"
        self.istio_namespace = f"istio-{self.suffix}"
        self.reviewer_namespace = f"vault-{self.suffix}"
        self.kek_id = f"kek-{self.suffix}"
        self.root = pki.root(f"Root {self.suffix}")
        self.values = make_credentials(mark=f"canary-{secrets.token_hex(8)}")
        folder.mkdir()
        (folder / "root.pem").write_bytes(self.root.pem)
        for key, name in (("clientcert", "c.pem"), ("clientkey", "k.pem"), ("servercert", "s.pem")):
            (folder / name).write_text(self.values[key])
        (folder / "pin").write_text(self.values["PIN"] + "\n")
        (folder / "vault-token").write_text(bao.root_token + "\n")
        self.istioctl = folder / "istioctl"
        self.istioctl_log = folder / "istioctl.log"
        self.istioctl.write_text(
            _ISTIOCTL.format(
                python=sys.executable,
                log=str(self.istioctl_log),
                namespace=self.istio_namespace,
            )
        )
        self.istioctl.chmod(0o755)
        self.configure()

    def configure(self, *, kv_version: int = 1, istioctl: Path | None = None) -> None:
        """Write the configuration file."""
        self.config.write_text(
            f"""
apiVersion: istio-hsm/v1
cluster:
  suffix: {self.suffix}
vault:
  address: {self.bao.address}
  caFile: {self.bao.ca_file}
  kvVersion: {kv_version}
  reviewerNamespace: {self.reviewer_namespace}
hsm:
  slotLabel: mesh
  kekId: {self.kek_id}
  rootCertFile: root.pem
  clientCertFile: c.pem
  clientKeyFile: k.pem
  serverCertFile: s.pem
  pinFile: pin
  socket: {self.plugin.socket}
istio:
  namespace: {self.istio_namespace}
  istioctl: {istioctl or self.istioctl}
"""
        )

    @property
    def config(self) -> Path:
        return self.folder / "istio-hsm.yaml"

    @property
    def state(self) -> Path:
        return self.folder / "istio-hsm.state.json"

    @property
    def path(self) -> str:
        """HSM_SECRET_PATH."""
        return f"asm-{self.suffix}/hsm"

    def run(self, command: str, *arguments: str) -> Ran:
        """Return how a command that reads the configuration ended, its result as JSON."""
        return run_cli(self.command_line(command, *arguments)[1:], self._environment)

    def kill_when(self, command: str, is_time: Callable[[], bool], *arguments: str) -> bool:
        """Start a command and send it SIGKILL at a moment; False when it ended before."""
        process = subprocess.Popen(
            self.command_line(command, *arguments),
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None and not is_time():
            time.sleep(0.001)
        process.kill()
        return process.wait() == -signal.SIGKILL

    def started_step(self) -> str | None:
        """Return which step the state file says is under way."""
        if not self.state.exists():
            return None
        steps: dict[str, Any] = json.loads(self.state.read_text())["steps"]
        return next((name for name, step in steps.items() if step["at"] == "started"), None)

    def remembers(self, step: str) -> bool:
        """Return whether the state file has the step: it is under way, or done."""
        return self.state.exists() and step in json.loads(self.state.read_text())["steps"]

    def command_line(self, command: str, *arguments: str) -> Sequence[str]:
        return [
            str(Path(sys.executable).parent / "istio-hsm"),
            *command.split(),
            *("-f", str(self.config), "-o", "json"),
            *("--kubeconfig", str(self.kube.kubeconfig())),
            *(() if command == "check" else self.areas),
            *arguments,
        ]

    @property
    def _environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.folder),
            "VAULT_TOKEN_FILE": str(self.folder / "vault-token"),
            "REQUESTS_CA_BUNDLE": "/nonexistent/bundle",
        }

    # What is really there

    @property
    def core(self) -> client.CoreV1Api:
        return client.CoreV1Api(self.kube.admin_client())

    def namespaces(self) -> set[str]:
        """Return which of our namespaces exist."""
        ours = {self.istio_namespace, self.reviewer_namespace}
        found = self.core.list_namespace().items
        return {str(entry.metadata.name) for entry in found if entry.metadata} & ours

    def vault_leftovers(self) -> list[str]:
        """Return mounts and policies of this installation."""
        names = [*self._keys("sys/mounts"), *self._keys("sys/auth")]
        names += self.bao.list("sys/policies/acl")
        return [name for name in names if self.suffix in name]

    def _keys(self, path: str) -> list[str]:
        data = self.bao.read(path)["data"]
        assert isinstance(data, dict)
        return list(data)
