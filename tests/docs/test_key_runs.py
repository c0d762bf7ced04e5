"""The pages about a token and its keys, run: names, a rotation, an end, the audit log."""

import base64
import hashlib
import json
import re
import subprocess
from pathlib import Path

import grpc
import pytest
from kubernetes import client

from istio_hsm_proto import kms_istio_v1_pb2 as kms
from istio_hsm_proto import signing_v1_pb2 as signing
from tests.docs import operator
from tests.docs.pages import Block, blocks_of
from tests.docs.sandbox import Sandbox
from tests.support import plugin as plugins
from tests.support import vectors
from tests.support.kube import KubeCluster
from tests.support.softhsm import SoftHsm, add_token

_SOCKET = "SOCKET"
_START = Block(
    "this test",
    1,
    "sh",
    frozenset(),
    "hsm-plugin serve &\nuntil hsm-plugin health; do sleep 0.1; done\nkill $! && wait $! || true\n",
)
"""What the variables of the page are for."""

_SECRETS = ("istio-ca-encrypted-key", "istio-ca-cert-csr")
_SERIAL = re.compile(r"Serial number:\s*(\S+)")


@pytest.mark.timeout(120)
def test_a_token_is_named_as_the_page_says(sandbox: Sandbox, hsm: SoftHsm, tmp_path: Path) -> None:
    for label in ("mesh-a", "mesh-b"):
        add_token(hsm, label=label, pin=hsm.pin)
    sandbox.replaced["9b1c4f2a"] = serial_of(hsm)
    sandbox.environment |= hsm.environment() | {_SOCKET: str(tmp_path / ".sock")}
    del sandbox.environment["PATH"], sandbox.environment["HOME"], sandbox.environment["P11_TOKEN"]
    one, several = blocks_of("docs/keys.md", "names")
    by_label, by_serial = one.text.splitlines(keepends=True)
    for text, label in ((by_label, "mesh"), (by_serial, "mesh"), (several.text, "mesh-a")):
        told = sandbox.run([Block(one.page, one.line, "sh", one.runs, text), _START])
        assert f'Connected to token "{label}"' in told, told


def serial_of(hsm: SoftHsm) -> str:
    """Return the serial number of the one token that bears the label."""
    shown = subprocess.run(
        ["softhsm2-util", "--show-slots"],
        env=hsm.environment(),
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    [token] = [part for part in shown.split("\nSlot ") if re.search(r"Label:\s+mesh\s", part)]
    found = _SERIAL.search(token)
    assert found is not None
    return found[1]


@pytest.mark.timeout(120)
def test_the_references_token_is_looked_at_and_given_the_root(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    hsm = vectors.reference_token(tmp_path / "reference")
    sandbox.environment |= hsm.environment() | {
        _SOCKET: str(tmp_path / ".sock"),
        "KEK_ID": vectors.interop().kek_id.decode(),
    }
    del sandbox.environment["PATH"], sandbox.environment["HOME"]
    operator.write_root(sandbox.folder, operator.offline_root())

    told = sandbox.run(blocks_of("docs/migration.md", "run"))

    assert "CN=Mesh Root" in told


@pytest.mark.timeout(120)
def test_a_kek_is_rotated_and_retired_as_the_page_says(
    sandbox: Sandbox,
    hsm: SoftHsm,
    tmp_path: Path,
    kube: KubeCluster,
    namespace: str,
    with_kubectl: Path,
) -> None:
    sandbox.program("kubectl", with_kubectl)
    sandbox.environment["KUBECONFIG"] = str(kube.kubeconfig())
    sandbox.replaced["istio-system"] = namespace
    sandbox.program("hsm-plugin", in_a_pod(kube, namespace, tmp_path / "account"))
    backups = sandbox.folder / "backups"
    backups.mkdir()
    with plugins.running(hsm, tmp_path / "plugin") as plugin, plugin.keys() as keys:
        sandbox.environment[_SOCKET] = str(plugin.socket)
        keys.GenerateKEK(kms.GenerateKEKRequest(kek_kid=b"kek-2026"))
        wrapped = [
            keys.GenerateDEK(kms.GenerateDEKRequest(kek_kid=b"kek-2026")).encrypted_dek_blob
            for _ in range(3)
        ]
        (backups / "dek").write_bytes(wrapped[0])
        for name, dek in zip(_SECRETS, wrapped[1:], strict=True):
            write_secret(kube, namespace, name, dek)

        sandbox.run(blocks_of("docs/keys.md", "kek"))

        moved = [read_secret(kube, namespace, name) for name in _SECRETS]
        assert {secret["kek-id"] for secret in moved} == {b"kek-2027"}
        for dek in ((backups / "dek").read_bytes(), *(it["encrypted-dek"] for it in moved)):
            keys.AuthenticatedEncrypt(
                kms.AuthenticatedEncryptRequest(
                    kek_kid=b"kek-2027", encrypted_dek_blob=dek, plaintext=b"x"
                )
            )
        with pytest.raises(grpc.RpcError, match="kek-2026"):
            keys.GenerateDEK(kms.GenerateDEKRequest(kek_kid=b"kek-2026"))


def in_a_pod(kube: KubeCluster, namespace: str, folder: Path) -> str:
    """Return a script: hsm-plugin, with the API server and account that a pod finds by itself."""
    folder.mkdir()
    (folder / "token").write_text(kube.service_account_token(namespace, "default"))
    (folder / "ca.crt").write_text(kube.ca_pem)
    rbac = client.RbacAuthorizationV1Api(kube.admin_client())
    named = client.V1ObjectMeta(name="kek-rotation")
    rule = client.V1PolicyRule(
        api_groups=[""], resources=["secrets"], resource_names=[*_SECRETS], verbs=["get", "update"]
    )
    rbac.create_namespaced_role(namespace, client.V1Role(metadata=named, rules=[rule]))
    account = client.RbacV1Subject(kind="ServiceAccount", name="default", namespace=namespace)
    role = client.V1RoleRef(api_group="rbac.authorization.k8s.io", kind="Role", name="kek-rotation")
    rbac.create_namespaced_role_binding(
        namespace, client.V1RoleBinding(metadata=named, role_ref=role, subjects=[account])
    )
    server = kube.server.removeprefix("https://")
    return f"""#!/bin/bash
case " $* " in
*" --secret "*) exec {plugins.program()} "$@" --api-server {server} --service-account {folder} ;;
esac
exec {plugins.program()} "$@"
"""


def write_secret(kube: KubeCluster, namespace: str, name: str, dek: bytes) -> None:
    values = {"kek-id": b"kek-2026", "encrypted-dek": dek, "csr-id": b"cluster.local"}
    client.CoreV1Api(kube.admin_client()).create_namespaced_secret(
        namespace,
        client.V1Secret(
            metadata=client.V1ObjectMeta(name=name),
            data={key: base64.b64encode(value).decode() for key, value in values.items()},
        ),
    )


def read_secret(kube: KubeCluster, namespace: str, name: str) -> dict[str, bytes]:
    found = client.CoreV1Api(kube.admin_client()).read_namespaced_secret(name, namespace)
    return {key: base64.b64decode(value) for key, value in (found.data or {}).items()}


@pytest.mark.timeout(120)
def test_the_first_look_and_the_end_of_a_signing_key(
    sandbox: Sandbox, hsm: SoftHsm, tmp_path: Path
) -> None:
    with plugins.running(hsm, tmp_path / "plugin") as plugin, plugin.signing() as keys:
        sandbox.environment[_SOCKET] = str(plugin.socket)
        made = keys.GenerateSigningKey(
            signing.GenerateSigningKeyRequest(key_id=b"ca-2025", algorithm=signing.ECDSA_P256)
        )
        sandbox.replaced["5f0c..."] = hashlib.sha256(made.key.public_key).hexdigest()
        told = sandbox.run(
            [*blocks_of("docs/luna.md", "destroy"), *blocks_of("docs/keys.md", "destroy")]
        )
        assert "ca-2025" in told
        assert not keys.ListKeys(signing.ListKeysRequest()).keys


@pytest.mark.timeout(120)
def test_the_audit_log_is_verified_as_the_page_says(
    sandbox: Sandbox, hsm: SoftHsm, tmp_path: Path
) -> None:
    log = tmp_path / "audit" / "audit.log"
    log.parent.mkdir()
    sandbox.replaced["/var/log/hsm/"] = f"{log.parent}/"
    settings = {"AUDIT_LOG": str(log), "AUDIT_CHECKPOINT_ENTRIES": "2"}
    with plugins.running(hsm, tmp_path / "plugin", environment=settings) as plugin:
        sandbox.environment[_SOCKET] = str(plugin.socket)
        with plugin.keys() as keys:
            keys.GenerateKEK(kms.GenerateKEKRequest(kek_kid=b"kek"))
            for _ in range(3):
                keys.GenerateDEK(kms.GenerateDEKRequest(kek_kid=b"kek"))
        plugin.wait_until(
            lambda: '"kind":"checkpoint"' in log.read_text(), "a checkpoint in the audit log"
        )
        blocks = blocks_of("docs/being-seen.md", "audit")
        sandbox.run(blocks)

        lines = log.read_text().splitlines(keepends=True)
        first = json.loads(lines[1]) | {"key": "another"}
        lines[1] = json.dumps(first, separators=(",", ":")) + "\n"
        log.write_text("".join(lines))
        with pytest.raises(AssertionError, match="ended with 79"):
            sandbox.run(blocks)
