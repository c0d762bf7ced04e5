"""rotate-kek on Secrets: kek-id and encrypted-dek change together, or not at all."""

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kubernetes import client

from hsm_plugin import kube as plugin_kube
from hsm_plugin.cli import run
from hsm_plugin.errors import BadRequestError, HsmPluginError
from hsm_plugin.kek_rotation import ChangedError
from istio_hsm_proto import kms_istio_v1_pb2 as kms
from tests.support import pki, softhsm
from tests.support import plugin as plugins
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


@pytest.fixture
def account(kube: KubeCluster, namespace: str, tmp_path: Path) -> plugin_kube.Api:
    """The namespace's service account, which may do nothing yet."""
    (tmp_path / "token").write_text(kube.service_account_token(namespace, "default"))
    (tmp_path / "ca.crt").write_text(kube.ca_pem)
    return plugin_kube.Api(kube.server.removeprefix("https://"), tmp_path)


@pytest.fixture
def entitled(kube: KubeCluster, namespace: str, account: plugin_kube.Api) -> plugin_kube.Api:
    """The service account with the rights that the documentation names."""
    api = client.RbacAuthorizationV1Api(kube.admin_client())
    named = client.V1ObjectMeta(name="kek-rotation")
    rule = client.V1PolicyRule(
        api_groups=[""], resources=["secrets"], resource_names=[*NAMES], verbs=["get", "update"]
    )
    api.create_namespaced_role(namespace, client.V1Role(metadata=named, rules=[rule]))
    api.create_namespaced_role_binding(
        namespace,
        client.V1RoleBinding(
            metadata=named,
            role_ref=client.V1RoleRef(
                api_group="rbac.authorization.k8s.io", kind="Role", name="kek-rotation"
            ),
            subjects=[
                client.RbacV1Subject(kind="ServiceAccount", name="default", namespace=namespace)
            ],
        ),
    )
    return account


def command(plugin: Plugin, name: str, api: plugin_kube.Api, namespace: str, *more: str) -> int:
    named = [part for secret in NAMES for part in ("--secret", f"{namespace}/{secret}")]
    where = ["--api-server", api.address, "--service-account", str(api.service_account)]
    return run([name, "--socket", str(plugin.socket), *where, *named, *more])


def test_both_secrets_come_under_the_new_kek_and_the_old_one_is_kept_until_they_are(
    plugin: Plugin,
    entitled: plugin_kube.Api,
    namespace: str,
    secrets: Callable[[], list[Values]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = secrets()
    retire = ("--kek-id", "old", "--confirm-kek-id", "old")
    assert command(plugin, "retire-kek", entitled, namespace, *retire) == 1
    assert f"Secret {namespace}/{NAMES[1]}" in capsys.readouterr().err
    assert command(plugin, "rotate-kek", entitled, namespace, *KEKS) == 0
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
    assert command(plugin, "rotate-kek", entitled, namespace, *KEKS) == 0
    assert capsys.readouterr().out.count("already under the new KEK") == len(NAMES)
    assert secrets() == after


def test_a_secret_that_changed_since_it_was_read_is_not_overwritten(
    entitled: plugin_kube.Api, namespace: str, secrets: Callable[[], list[Values]]
) -> None:
    source = plugin_kube.secret(entitled, f"{namespace}/{NAMES[0]}")
    content = source.read()
    changed = json.loads(content)
    changed["data"]["csr-id"] = base64.b64encode(b"other").decode()
    source.replace(content, json.dumps(changed).encode())
    with pytest.raises(ChangedError):
        source.replace(content, content)
    assert secrets()[0]["csr-id"] == b"other"
    del changed["metadata"]["resourceVersion"]
    with pytest.raises(HsmPluginError, match="without a resourceVersion"):
        source.replace(content, json.dumps(changed).encode())


def test_rights_that_are_missing_are_said_and_nothing_changes(
    plugin: Plugin,
    account: plugin_kube.Api,
    namespace: str,
    secrets: Callable[[], list[Values]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = secrets()
    assert command(plugin, "rotate-kek", account, namespace, *KEKS) == 1
    said = capsys.readouterr().err
    assert "answers 403 when asked to read" in said
    assert f"--verb=get,update --resource=secrets --resource-name={NAMES[0]}" in said
    assert secrets() == before


def test_a_secret_that_is_not_there_and_another_ca_are_said(
    entitled: plugin_kube.Api, namespace: str, tmp_path: Path
) -> None:
    with pytest.raises(BadRequestError, match="does not exist"):
        plugin_kube.secret(entitled, f"{namespace}/{NAMES[0]}").read()
    (tmp_path / "ca.crt").write_bytes(pki.root("Another").pem)
    with pytest.raises(HsmPluginError, match="cannot be reached: SSLCertVerificationError"):
        plugin_kube.secret(entitled, f"{namespace}/{NAMES[0]}").read()
    (tmp_path / "token").unlink()
    with pytest.raises(BadRequestError, match="holds no token"):
        plugin_kube.secret(entitled, f"{namespace}/{NAMES[0]}").read()
