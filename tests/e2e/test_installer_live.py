"""verify --live and status beside a bridge that serves with a key in a real token."""

import base64
import os
import secrets
import shlex
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from kubernetes import client

from tests.e2e.installer_runs import Ran
from tests.e2e.live_site import LiveSite
from tests.integration.istiod_ca_bridge import cluster_harness
from tests.support import pki, softhsm
from tests.support.kube import KubeCluster
from tests.support.plugin import program

SETTINGS = {"ISTIO_REVISIONS": "stable"}


@pytest.fixture(scope="module")
def live(kube: KubeCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveSite]:
    namespace = f"live-{secrets.token_hex(4)}"
    folder = tmp_path_factory.mktemp("live")
    settings = SETTINGS | {
        "CA_SERVER_NAMES": f"istiod-ca-bridge.{namespace}.svc",
    }
    with cluster_harness.serving_site(kube, namespace, folder, settings) as site:
        (folder / "operator").mkdir()
        live = LiveSite.made(site, folder / "operator")
        site.bridge.wait_until(lambda: "istiod-tls" in secret_names(live), "istiod-tls")
        hook = live.webhook(site.root.pem)
        yield live
        client.AdmissionregistrationV1Api(
            kube.admin_client()
        ).delete_mutating_webhook_configuration(hook)


def secret_names(live: LiveSite) -> set[str]:
    found = live.core.list_namespaced_secret(live.namespace).items
    return {str(entry.metadata.name) for entry in found if entry.metadata}


def test_what_is_served_was_signed_by_the_key_that_the_hsm_does_not_give_away(
    live: LiveSite,
) -> None:
    points = live.points("--address", live.site.bridge.address)
    for name in (
        f"served at {live.site.bridge.address}",
        "CA key in the HSM",
        "webhook's CA",
        "Secret istiod-tls",
        "ConfigMap vault-tls-cert",
    ):
        assert points[name][0], points[name]
    assert "cannot be extracted" in points["CA key in the HSM"][1]


def test_the_expiry_table_has_every_certificate_the_first_to_expire_on_top(live: LiveSite) -> None:
    rows = live.run("verify").document["certificates"]
    assert {row["source"] for row in rows} == {
        "Secret istio-ca-cert",
        "Secret istiod-tls",
        "webhook",
        "ConfigMap vault-tls-cert",
    }
    assert rows == sorted(rows, key=lambda row: row["not_after"])
    text = live.run("verify", output="text").out
    assert "Secret istiod-tls" in text


def test_another_name_is_refused_as_a_proxy_would(live: LiveSite) -> None:
    address = live.site.bridge.address
    is_fine, said = live.points("--address", address, "--server-name", "istiod.other.svc")[
        f"served at {address}"
    ]
    assert not is_fine
    assert "Hostname mismatch" in said


def test_a_server_of_another_ca_is_not_the_hsm_s(live: LiveSite, tmp_path: Path) -> None:
    impostor = pki.root("Mesh Root")
    with serving(pki.issue("localhost", impostor), tmp_path) as address:
        is_fine, said = live.points("--workload", address)[f"served at {address}"]
    assert not is_fine
    assert said.startswith("signed by CN=Mesh Root, which is not the HSM's")


def test_a_sidecar_s_certificate_is_recognised_without_a_name(
    live: LiveSite, tmp_path: Path
) -> None:
    chain = live.core.read_namespaced_secret("istiod-tls", live.namespace).data or {}
    (tmp_path / "tls.pem").write_bytes(
        base64.b64decode(chain["tls.crt"]) + base64.b64decode(chain["tls.key"])
    )
    with listening(tmp_path / "tls.pem") as address:
        assert live.points("--workload", address)[f"served at {address}"][0]


def test_where_nothing_listens_is_a_finding_with_a_way_out(live: LiveSite) -> None:
    ran = live.run("verify", "--address", "127.0.0.1:1")
    assert ran.code == 79
    [point] = [p for p in ran.document["points"] if p["name"] == "served at 127.0.0.1:1"]
    assert "kubectl port-forward" in point["hint"]


def test_a_stale_bundle_of_the_webhook_and_another_vault_ca_are_told(live: LiveSite) -> None:
    api = client.AdmissionregistrationV1Api(live.site.kube.admin_client())
    name = f"istio-sidecar-injector-{live.namespace}"
    hook = api.read_mutating_webhook_configuration(name)
    assert hook.webhooks
    good = hook.webhooks[0].client_config.ca_bundle
    hook.webhooks[0].client_config.ca_bundle = base64.b64encode(pki.root().pem).decode()
    api.replace_mutating_webhook_configuration(name, hook)
    patched = {"data": {"cert": pki.root("Other").pem.decode()}}
    live.core.patch_namespaced_config_map("vault-tls-cert", live.namespace, patched)
    try:
        points = live.points("--address", live.site.bridge.address)
        assert points["webhook's CA"] == (False, "it is not the root of the chain")
        assert points["ConfigMap vault-tls-cert"] == (False, "is not vault.caFile")
    finally:
        again = api.read_mutating_webhook_configuration(name)
        assert again.webhooks
        again.webhooks[0].client_config.ca_bundle = good
        api.replace_mutating_webhook_configuration(name, again)
        mended = {"data": {"cert": (live.folder / "vault-ca.pem").read_text()}}
        live.core.patch_namespaced_config_map("vault-tls-cert", live.namespace, mended)


def conditions(live: LiveSite) -> dict[str, str]:
    """Return what `status` shows of the CA's conditions: type -> status."""
    shown = live.run("status").document["conditions"]
    return {condition["name"]: condition["status"] for condition in shown}


def test_status_says_where_it_stands_and_what_is_next(live: LiveSite) -> None:
    shown = live.run("status").document
    assert shown["key"]["place"] == "resident"
    assert shown["ca_certificate"].startswith("O=cluster.local, until")
    assert shown["root"].startswith("CN=Mesh Root")
    assert not shown["vault"]["is_ready"]
    assert shown["next"]["why"] == "there is no istiod of this revision"

    live.site.kube.create_pod(
        live.namespace, "bridge-0", labels={"app.kubernetes.io/name": "istiod-ca-bridge"}
    )
    live.site.bridge.wait_until(
        lambda: conditions(live).get("Ready") == "True",
        "the condition Ready, as the bridge tells it",
    )
    shown = live.run("status").document
    assert conditions(live)["ChainAccepted"] == "True"
    assert shown["is_installed"]
    assert shown["pods"][0]["name"] == "pod bridge-0"
    assert shown["pods"][0]["said"].startswith("0/1")
    assert shown["next"]["why"].startswith("Vault: Vault at https://127.0.0.1:1 cannot be reached")
    text = live.run("status", output="text").out
    assert "resident in the HSM" in text
    assert "next: Vault" in text


def drill(live: LiveSite, *arguments: str) -> Ran:
    pace = ("--every", "0.1", "--timeout", "0.5", "--limit", "60", "--yes")
    return live.run("drill", *arguments, "--address", live.site.bridge.address, *pace)


def test_a_frozen_plugin_stops_issuance_and_the_drill_sees_it_come_back(live: LiveSite) -> None:
    ran = drill(live, "plugin", "--pid", str(live.site.hsm.pid), "--seconds", "1")
    assert ran.code == 0, ran.err
    found = ran.document
    assert found["refused"]
    assert found["seconds_without_issuance"] > 0.5
    assert found["seconds_to_recovery"] is not None
    assert found["fault"] == f"freeze process {live.site.hsm.pid}"


def test_a_drill_that_is_told_to_end_mends_its_fault_first(live: LiveSite) -> None:
    command = [
        *(program("istio-hsm"), "drill", "plugin", "--yes", "--seconds", "100"),
        *("--pid", str(live.site.hsm.pid), "--address", live.site.bridge.address),
        *("-f", str(live.folder / "istio-hsm.yaml")),
        *("--kubeconfig", str(live.site.kube.kubeconfig())),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    live.site.bridge.wait_until(lambda: state_of(live.site.hsm.pid) == "T", "a frozen plugin")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "interrupted" in err
    assert state_of(live.site.hsm.pid) != "T"


def state_of(pid: int) -> str:
    """Return the process's state; T is a stopped one."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_deleted_pods_are_those_of_the_selector(live: LiveSite) -> None:
    live.site.kube.create_pod(
        live.namespace, "istiod-0", labels={"app": "istiod", "istio.io/rev": "stable"}
    )
    live.site.kube.create_pod(live.namespace, "other-0", labels={"app": "other"})
    ran = drill(live, "plugin", "--seconds", "0")
    assert ran.code == 0, ran.err
    assert ran.document["refused"] == {}
    pods = live.core.list_namespaced_pod(live.namespace).items
    left = {entry.metadata.name for entry in pods if entry.metadata}
    assert "other-0" in left
    assert "istiod-0" not in left


def test_vault_is_scaled_to_none_and_back_and_issuance_goes_on(live: LiveSite) -> None:
    apps = client.AppsV1Api(live.site.kube.admin_client())
    labels = {"app": "vault"}
    template = client.V1PodTemplateSpec(
        metadata=client.V1ObjectMeta(labels=labels),
        spec=client.V1PodSpec(containers=[client.V1Container(name="vault", image="v:1")]),
    )
    apps.create_namespaced_stateful_set(
        live.namespace,
        client.V1StatefulSet(
            metadata=client.V1ObjectMeta(name="vault"),
            spec=client.V1StatefulSetSpec(
                replicas=3,
                service_name="vault",
                selector=client.V1LabelSelector(match_labels=labels),
                template=template,
            ),
        ),
    )
    ran = drill(live, "vault", "--scale", f"{live.namespace}/statefulset/vault", "--seconds", "0")
    assert ran.code == 0, ran.err
    assert ran.document["refused"] == {}
    after = apps.read_namespaced_stateful_set("vault", live.namespace)
    assert after.spec is not None
    assert after.metadata is not None
    assert (after.spec.replicas, after.metadata.generation) == (3, 3)  # made, emptied, restored


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("hsm",), "not told"),
        (("vault", "--pid", "2", "--scale", "a/deployment/b"), "told twice"),
        (("vault", "--begin", "true"), "go together"),
        (("vault", "--begin", "echo '", "--end", "true"), "open quote"),
        (("vault", "--scale", "vault"), "names nothing"),
        (("vault", "--scale", "default/deployment/none"), "there is no Deployment"),
        (("hsm", "--begin", "false", "--end", "true"), "false failed"),
    ],
)
def test_a_fault_that_cannot_be_made_is_told(
    live: LiveSite, arguments: tuple[str, ...], said: str
) -> None:
    ran = drill(live, *arguments, "--seconds", "0")
    assert ran.code == 1
    assert said in ran.err


def test_without_a_ca_that_issues_nothing_is_made_to_fail(live: LiveSite, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("no-token-at-all")
    mark = tmp_path / "mark"
    ran = drill(
        *(live, "hsm", "--token-file", str(tmp_path / "token")),
        *("--begin", f"touch {mark}", "--end", "true"),
    )
    assert ran.code == 1
    assert "UNAUTHENTICATED" in ran.err
    assert not mark.exists()


def test_a_killed_plugin_that_is_started_again_serves_again(live: LiveSite, tmp_path: Path) -> None:
    token = softhsm.SoftHsm(
        folder=live.folder.parent / "token",
        label="mesh",
        pin="271828",
        module=softhsm.module_path(),
    )
    environment = token.environment() | {"SOCKET": str(live.site.hsm.socket)}
    settings = " ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items())
    script, pid = tmp_path / "restart.sh", tmp_path / "pid"
    script.write_text(
        f"exec >/dev/null 2>&1\n"
        f"setsid env {settings} timeout 100 {program('hsm-plugin')} serve & echo $! >{pid}\n"
    )
    ran = drill(
        *(live, "plugin", "--seconds", "0.5", "--end", f"sh {script}"),
        *("--begin", f"kill -KILL {live.site.hsm.pid}"),
    )
    os.kill(int(pid.read_text()), signal.SIGTERM)
    assert ran.code == 0, ran.err
    assert "UNAVAILABLE" in ran.document["refused"]
    assert ran.document["seconds_to_recovery"] > 0


def serving(leaf: pki.Issued, folder: Path) -> "Listener":
    """A TLS server with a certificate of its own."""
    key = leaf.key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (folder / "both.pem").write_bytes(leaf.pem + key)
    return listening(folder / "both.pem")


def listening(pem: Path) -> "Listener":
    """A TLS server with the certificates and the key of a file."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return Listener(context)


class Listener:
    """Shakes hands with two clients, and is gone."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context

    def __enter__(self) -> str:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.settimeout(20)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return f"127.0.0.1:{self._socket.getsockname()[1]}"

    def _serve(self) -> None:
        for _ in range(2):
            try:
                plain, _address = self._socket.accept()
                with plain, self._context.wrap_socket(plain, server_side=True) as secured:
                    secured.recv(1)
            except OSError:
                continue

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._thread.join(20)
