"""The client against OpenBao whose Kubernetes auth asks a real kube-apiserver's TokenReview."""

from pathlib import Path

import pytest
from kubernetes import client as kubernetes

from tests.e2e.vault_client.conftest import AUDIENCE, Mesh
from tests.support.pki import root
from tests.support.vault_client import run_client


def refusal(mesh: Mesh, **more: str) -> str:
    """Return what the client says of a refused delivery."""
    done = run_client(mesh.environment(**more), "--once")
    assert done.returncode == 77, done.stderr
    assert not (mesh.output / "pin").exists()
    return done.stderr


def test_a_projected_token_delivers_the_secret(mesh: Mesh) -> None:
    done = run_client(mesh.environment(), "--once")
    assert done.returncode == 0, done.stderr
    assert (mesh.output / "pin").read_text().endswith("-one")


def test_a_wrong_role_is_named_with_the_command_that_makes_it(mesh: Mesh) -> None:
    said = refusal(mesh, VAULT_ROLE="istiodd")
    assert f"{mesh.namespace}/hsm knows no role istiodd" in said
    assert (
        f"bao write {mesh.auth}/role/istiodd bound_service_account_names=istiod "
        f"bound_service_account_namespaces={mesh.namespace} audience={AUDIENCE}" in said
    )


def test_a_wrong_audience_is_named_with_both_audiences(mesh: Mesh) -> None:
    mesh.write_jwt(audience="https://kubernetes.default.svc")
    said = refusal(mesh)
    assert "our token is for the audience https://kubernetes.default.svc" in said
    assert "the role istiod wants vault" in said
    assert "set `audience: vault`" in said


def test_a_wrong_auth_path_is_named(mesh: Mesh) -> None:
    said = refusal(mesh, VAULT_AUTH_PATH="auth/asm-c1/hsmm/login")
    assert "no auth method is mounted at asm-c1/hsmm" in said
    assert "bao auth list" in said


def test_a_policy_that_grants_nothing_is_named_with_the_one_to_write(mesh: Mesh) -> None:
    mesh.set_role(policies=["default"])
    said = refusal(mesh)
    assert "none of the token's policies grants reading" in said
    assert f'path "{mesh.namespace}/data/istiod" {{ capabilities = ["read"] }}' in said


def test_a_policy_written_for_version_1_is_named(mesh: Mesh) -> None:
    mesh.bao.allow(mesh.namespace, {f"{mesh.namespace}/istiod": "read"})
    said = refusal(mesh)
    assert f"the policy grants {mesh.namespace}/istiod" in said
    assert f"read at {mesh.namespace}/data/istiod" in said


def test_a_wrong_kv_path_is_told_from_a_wrong_policy(mesh: Mesh) -> None:
    said = refusal(mesh, VAULT_KV_PATH=f"{mesh.namespace}/istoid")
    assert f"the token may read {mesh.namespace}/data/istiod" in said
    assert f"VAULT_KV_PATH leads to {mesh.namespace}/data/istoid" in said


def test_a_wrong_kv_mount_is_named_too(mesh: Mesh) -> None:
    said = refusal(mesh, VAULT_KV_PATH="asm-c9/istiod")
    assert f"the token may read {mesh.namespace}/data/istiod" in said


def test_an_account_that_the_role_does_not_bind_is_shown_as_who_it_is(mesh: Mesh) -> None:
    mesh.kube.create_service_account(mesh.namespace, "other")
    mesh.write_jwt("other")
    said = refusal(mesh)
    assert f"system:serviceaccount:{mesh.namespace}:other" in said
    assert "binds another account or audience" in said


@pytest.mark.parametrize(
    "broken",
    [{"token_reviewer_jwt": "expired"}, {"kubernetes_host": "https://127.0.0.1:1"}],
    ids=["reviewer", "host"],
)
def test_a_vault_that_cannot_review_leads_to_its_own_configuration(
    mesh: Mesh, broken: dict[str, object]
) -> None:
    mesh.set_auth(**broken)
    said = refusal(mesh)
    assert "Vault cannot have the token reviewed" in said
    assert f"bao read {mesh.auth}/config" in said


def test_no_refusal_shows_the_token(mesh: Mesh) -> None:
    mesh.write_jwt(audience="another")
    token = (mesh.folder / "jwt").read_text()
    with mesh.client(LOG_LEVEL="debug") as client:
        client.wait_status(state="starting", cause="forbidden", reason="audience")
        assert not [part for part in token.split(".") if part in client.log]


def test_a_deleted_service_account_keeps_the_set_and_is_reported(mesh: Mesh) -> None:
    mesh.set_role(ttl="2s", max_ttl="2s")
    with mesh.client() as client:
        client.wait_status(state="ready")
        core = kubernetes.CoreV1Api(mesh.kube.admin_client())
        core.delete_namespaced_service_account("istiod", mesh.namespace)
        client.wait_status(state="degraded", cause="forbidden", reason="binding_or_review")
        assert (client.output / "pin").exists()


def test_the_ca_comes_from_a_config_map_and_is_followed_when_it_rotates(
    mesh: Mesh, tmp_path: Path
) -> None:
    bao = mesh.bao
    core = kubernetes.CoreV1Api(mesh.kube.admin_client())
    write_ca(core, mesh.namespace, bao.ca.pem.decode())
    allow_config_map(mesh)
    environment = mesh.pod(tmp_path / "pod")
    with mesh.client(
        **environment, VAULT_CACERT="", VAULT_AUTH_CERT_CM="vault-ca", CA_REFRESH_INTERVAL="200ms"
    ) as client:
        client.wait_status(state="ready")
        bao.use_ca(root("Rotated CA"))
        bao.ca_file.write_bytes(bao.ca.pem)
        bao.stop()
        bao.start()
        client.wait_status(cause="tls")
        write_ca(core, mesh.namespace, bao.ca.pem.decode())
        client.wait_status(state="ready", cause=None)
        assert client.count("ca.changed") == 1


def test_a_config_map_that_is_missing_or_forbidden_is_named(mesh: Mesh, tmp_path: Path) -> None:
    environment = mesh.environment(
        **mesh.pod(tmp_path / "pod"), VAULT_CACERT="", VAULT_AUTH_CERT_CM="vault-ca"
    )
    forbidden = run_client(environment, "--once")
    assert forbidden.returncode == 76
    assert (
        f"ConfigMap {mesh.namespace}/vault-ca holds Vault's CA and may not be" in forbidden.stderr
    )
    assert "kubectl" in forbidden.stderr
    allow_config_map(mesh)
    missing = run_client(environment, "--once")
    assert missing.returncode == 76
    assert f"ConfigMap {mesh.namespace}/vault-ca should hold Vault's CA" in missing.stderr
    core = kubernetes.CoreV1Api(mesh.kube.admin_client())
    write_ca(core, mesh.namespace, "none", key="ca.crt")
    keyless = run_client(environment, "--once")
    assert "has no key cert" in keyless.stderr


def test_a_config_map_of_another_namespace_is_found_by_its_full_name(
    mesh: Mesh, tmp_path: Path
) -> None:
    allow_config_map(mesh)
    write_ca(
        kubernetes.CoreV1Api(mesh.kube.admin_client()), mesh.namespace, mesh.bao.ca.pem.decode()
    )
    environment = mesh.pod(tmp_path / "pod")
    (tmp_path / "pod" / "namespace").write_text("default")
    name = f"vault-ca.{mesh.namespace}"
    settings = mesh.environment(**environment, VAULT_CACERT="", VAULT_AUTH_CERT_CM=name)
    done = run_client(settings, "--once")
    assert done.returncode == 0, done.stderr


def write_ca(core: kubernetes.CoreV1Api, namespace: str, pem: str, *, key: str = "cert") -> None:
    body = kubernetes.V1ConfigMap(
        metadata=kubernetes.V1ObjectMeta(name="vault-ca"), data={key: pem}
    )
    names = [item.metadata for item in core.list_namespaced_config_map(namespace).items]
    if any(about is not None and about.name == "vault-ca" for about in names):
        core.replace_namespaced_config_map("vault-ca", namespace, body)
    else:
        core.create_namespaced_config_map(namespace, body)


def allow_config_map(mesh: Mesh) -> None:
    """Let the account read the one ConfigMap, as the guide's manifests do."""
    rbac = kubernetes.RbacAuthorizationV1Api(mesh.kube.admin_client())
    about = kubernetes.V1ObjectMeta(name="vault-ca")
    rule = kubernetes.V1PolicyRule(
        api_groups=[""], resources=["configmaps"], resource_names=["vault-ca"], verbs=["get"]
    )
    rbac.create_namespaced_role(mesh.namespace, kubernetes.V1Role(metadata=about, rules=[rule]))
    rbac.create_namespaced_role_binding(
        mesh.namespace,
        kubernetes.V1RoleBinding(
            metadata=about,
            role_ref=kubernetes.V1RoleRef(
                api_group="rbac.authorization.k8s.io", kind="Role", name="vault-ca"
            ),
            subjects=[
                kubernetes.RbacV1Subject(
                    kind="ServiceAccount", name="istiod", namespace=mesh.namespace
                )
            ],
        ),
    )
