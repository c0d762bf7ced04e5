"""rotate-kek on Secrets: kek-id and encrypted-dek change together, or not at all."""

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kubernetes import client

from hsm_plugin import kube as plugin_kube
from hsm_plugin.cli import run
from hsm_plugin.errors import BadRequestError
from hsm_plugin.kek_rotation import ChangedError
from istio_hsm_proto import kms_istio_v1_pb2 as kms
from tests.support import plugin as plugins
from tests.support import softhsm
from tests.support.kube import KubeCluster
from tests.support.plugin import Plugin

NAMES = ("istio-ca-encrypted-key", "istio-ca-cert-csr")
KEKS = ("--old-kek-id", "old", "--new-kek-id", "new")
Values = dict[str, bytes]


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plugin]:
    hsm = softhsm.make_token(tmp_path_factory.mktemp("token"))
    with plugins.running(hsm, tmp_path_factory.mktemp("run")) as running:
        yield running


@pytest.fixture(scope="module")
def dek(plugin: Plugin) -> bytes:
    with plugin.keys() as stub:
        for kek_id in (b"old", b"new"):
            stub.GenerateKEK(kms.GenerateKEKRequest(kek_kid=kek_id))
        return stub.GenerateDEK(kms.GenerateDEKRequest(kek_kid=b"old")).encrypted_dek_blob


@pytest.fixture
def secrets(kube: KubeCluster, namespace: str, dek: bytes) -> Callable[[], list[Values]]:
    """Make both Secrets; return what reads them."""
    api = client.CoreV1Api(kube.admin_client())
    values: Values = {"kek-id": b"old", "encrypted-dek": dek, "csr-id": b"mesh.local"}
    data: dict[str, str | bytes] = {
        name: base64.b64encode(value).decode() for name, value in values.items()
    }
    for name in NAMES:
        api.create_namespaced_secret(
            namespace, client.V1Secret(metadata=client.V1ObjectMeta(name=name), data=data)
        )

    def read() -> list[Values]:
        found = [api.read_namespaced_secret(name, namespace).data or {} for name in NAMES]
        return [{key: base64.b64decode(value) for key, value in entry.items()} for entry in found]

    return read


def command(plugin: Plugin, name: str, kubeconfig: Path, namespace: str, *more: str) -> int:
    named = [part for secret in NAMES for part in ("--secret", f"{namespace}/{secret}")]
    where = ["--socket", str(plugin.socket), "--kubeconfig", str(kubeconfig)]
    return run([name, *where, *named, *more])


def test_both_secrets_come_under_the_new_kek_and_the_old_one_is_kept_until_they_are(
    plugin: Plugin,
    kube: KubeCluster,
    namespace: str,
    secrets: Callable[[], list[Values]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = kube.kubeconfig()
    before = secrets()
    retire = ("--kek-id", "old", "--confirm-kek-id", "old")
    assert command(plugin, "retire-kek", config, namespace, *retire) == 1
    assert f"Secret {namespace}/{NAMES[1]}" in capsys.readouterr().err
    assert command(plugin, "rotate-kek", config, namespace, *KEKS) == 0
    after = secrets()
    for old, new in zip(before, after, strict=True):
        assert new == old | {"kek-id": b"new", "encrypted-dek": new["encrypted-dek"]}
        with plugin.keys() as stub:
            stub.AuthenticatedEncrypt(
                kms.AuthenticatedEncryptRequest(
                    kek_kid=b"new", encrypted_dek_blob=new["encrypted-dek"], plaintext=b"x"
                )
            )
    capsys.readouterr()
    assert command(plugin, "rotate-kek", config, namespace, *KEKS) == 0
    assert capsys.readouterr().out.count("already under the new KEK") == len(NAMES)
    assert secrets() == after


def test_a_secret_that_changed_since_it_was_read_is_not_overwritten(
    kube: KubeCluster, namespace: str, secrets: Callable[[], list[Values]]
) -> None:
    source = plugin_kube.secret(
        plugin_kube.connect(kube.kubeconfig(), None), f"{namespace}/{NAMES[0]}"
    )
    content = source.read()
    changed = json.loads(content)
    changed["data"]["csr-id"] = base64.b64encode(b"other").decode()
    source.replace(content, json.dumps(changed).encode())
    with pytest.raises(ChangedError):
        source.replace(content, content)
    assert secrets()[0]["csr-id"] == b"other"


def test_rights_that_are_missing_are_said_and_nothing_changes(
    plugin: Plugin,
    kube: KubeCluster,
    namespace: str,
    secrets: Callable[[], list[Values]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = secrets()
    config = kube.service_account_kubeconfig(namespace, "default")
    assert command(plugin, "rotate-kek", config, namespace, *KEKS) == 1
    said = capsys.readouterr().err
    assert "answers 403 when asked to read" in said
    assert f"kubectl auth can-i get secret/{NAMES[0]} -n {namespace}" in said
    assert secrets() == before


@pytest.mark.parametrize("name", ["no-slash", "/x", "x/", "a/../b", "A/b", "a/b?c"])
def test_a_name_that_is_none_is_refused(kube: KubeCluster, name: str) -> None:
    api = plugin_kube.connect(kube.kubeconfig(), None)
    with pytest.raises(BadRequestError, match="not the name of a Secret"):
        plugin_kube.secret(api, name)


def test_no_cluster_to_talk_to_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadRequestError, match="no cluster to talk to"):
        plugin_kube.connect(tmp_path / "none", None)
