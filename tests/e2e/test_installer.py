"""The guide's steps on a real Kubernetes API, Vault and HSM plugin; istioctl is a stand-in."""

import base64
import contextlib
import functools
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from kubernetes import client

from tests.e2e.installer_site import BESIDE_THE_HSM, Site
from tests.support import plugin as plugins
from tests.support.kube import KubeCluster
from tests.support.openbao import OpenBao
from tests.support.plugin import Plugin
from tests.support.softhsm import make_token

STEPS = [
    "hsm-kek",
    "hsm-root",
    "reviewer-namespace",
    "reviewer-account",
    "reviewer-binding",
    "reviewer-token",
    "kv-mount",
    "kv-secret",
    "policy",
    "auth-mount",
    "auth-config",
    "auth-role",
    "istio-namespace",
    "vault-ca",
    "istio",
    "istiod-service",
]


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    server = OpenBao(tmp_path_factory.mktemp("bao"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plugin]:
    folder = tmp_path_factory.mktemp("hsm")
    with plugins.running(make_token(folder / "token"), folder / "run") as running:
        yield running


@pytest.fixture
def site(tmp_path: Path, kube: KubeCluster, bao: OpenBao, plugin: Plugin) -> Iterator[Site]:
    """An installation; of what it leaves, only the binding has no name of its own."""
    yield Site(tmp_path / "operator", kube, bao, plugin)
    rbac = client.RbacAuthorizationV1Api(kube.admin_client())
    with contextlib.suppress(client.ApiException):
        rbac.delete_cluster_role_binding("role-tokenreview-binding")


def test_from_nothing_to_a_login_that_reads_the_credentials_and_back_to_nothing(
    site: Site,
) -> None:
    planned = site.run("plan")
    assert planned.code == 2, planned.err
    assert set(planned.outcomes()) == set(STEPS)
    assert not site.namespaces()
    assert not site.vault_leftovers()
    assert not site.state.exists()

    applied = site.run("apply")
    assert applied.code == 0, applied.err
    assert list(applied.outcomes()) == STEPS
    assert set(applied.outcomes().values()) <= {"changed", "unchanged"}
    assert login(site, "istiod-service-account", site.istio_namespace) == {
        **site.values,
    }

    again = site.run("apply")
    assert again.code == 0, again.err
    assert again.document["summary"] == "no changes"
    assert set(again.outcomes().values()) == {"unchanged"}
    assert site.run("plan").code == 0
    assert len(site.istioctl_log.read_text().splitlines()) == 1

    undone = site.run("undo", "--yes")
    assert undone.code == 0, undone.err
    assert {step for step, became in undone.outcomes().items() if became == "kept"} == {
        "hsm-kek",
        "hsm-root",
    }
    assert not site.namespaces()
    assert not site.vault_leftovers()
    assert not site.state.exists()


def test_another_service_account_cannot_log_in(site: Site) -> None:
    site.areas = BESIDE_THE_HSM
    assert site.run("apply").code == 0
    with pytest.raises(requests.HTTPError, match="403"):
        login(site, "default", site.istio_namespace)


def test_a_second_kv_version_gets_its_own_policy_path(site: Site) -> None:
    site.areas = BESIDE_THE_HSM
    site.configure(kv_version=2)
    applied = site.run("apply")
    assert applied.code == 0, applied.err
    assert login(site, "istiod-service-account", site.istio_namespace, kv_version=2) == site.values
    assert site.run("plan").code == 0
    assert site.run("undo", "--yes").code == 0
    assert not site.vault_leftovers()


def test_killed_at_each_step_it_resumes_to_the_same_end(site: Site) -> None:
    # Kubernetes itself makes the account, so that step has nothing to be killed at.
    for step in (name for name in STEPS if name != "reviewer-account"):
        if step == "reviewer-binding":
            site.areas = BESIDE_THE_HSM
        killed = site.kill_when("apply", functools.partial(site.remembers, step), "--resume")
        assert killed or step == STEPS[-1], step  # the last may have ended before the signal

    site.areas = ()
    assert site.run("apply", "--resume").code == 0
    assert site.run("apply").document["summary"] == "no changes"
    undone = site.run("undo", "--yes")
    assert undone.code == 0, undone.err
    assert not site.namespaces()
    assert not site.vault_leftovers()


def test_a_stopped_apply_is_finished_only_on_purpose(site: Site) -> None:
    site.areas = BESIDE_THE_HSM
    assert site.kill_when("apply", lambda: site.started_step() == "kv-mount")
    refused = site.run("apply")
    assert refused.code == 1
    assert "stopped in the step kv-mount" in refused.err
    assert "--resume" in refused.err
    assert site.run("apply", "--resume").code == 0


def test_the_plan_shows_the_difference_that_others_made(site: Site) -> None:
    site.areas = BESIDE_THE_HSM
    assert site.run("apply").code == 0
    site.core.patch_namespaced_config_map(
        "vault-tls-cert", site.istio_namespace, {"data": {"cert": "tampered"}}
    )
    role = f"auth/{site.path}/role/istiod"
    site.bao.write(
        role,
        {
            "bound_service_account_names": "*",
            "bound_service_account_namespaces": "*",
            "token_policies": f"asm-{site.suffix}-hsm-policy",
            "token_ttl": "768h",
        },
    )
    site.bao.write(f"sys/policies/acl/asm-{site.suffix}-hsm-policy", {"policy": 'path "*" {}'})
    planned = site.run("plan")
    assert planned.code == 2
    pending = {
        step["step"]: step["changes"][0]
        for step in planned.document["steps"]
        if step["outcome"] == "pending"
    }
    assert set(pending) == {"vault-ca", "auth-role", "policy"}
    assert "-  cert: tampered" in pending["vault-ca"]["diff"]
    assert "-token_ttl: 2764800" in pending["auth-role"]["diff"]
    assert "+token_ttl: 3600" in pending["auth-role"]["diff"]
    assert '-path "*" {}' in pending["policy"]["diff"]

    repaired = site.run("apply")
    assert {step for step, became in repaired.outcomes().items() if became == "changed"} == set(
        pending
    )


def test_a_new_reviewer_token_is_given_to_vault(site: Site) -> None:
    site.areas = BESIDE_THE_HSM
    assert site.run("apply").code == 0
    # The token names its account's uid: a new account makes the old token void.
    site.core.delete_namespaced_service_account("default", site.reviewer_namespace)
    ends = time.monotonic() + 30
    while "default-token" in secrets_of(site) or not accounts_of(site, site.reviewer_namespace):
        assert time.monotonic() < ends, "the controllers took no notice"
        time.sleep(0.05)
    again = site.run("apply")
    assert {step for step, became in again.outcomes().items() if became == "changed"} == {
        "reviewer-token",
        "auth-config",
    }
    assert login(site, "istiod-service-account", site.istio_namespace) == site.values


def test_undo_keeps_what_was_there_before_and_what_others_put_in(site: Site) -> None:
    site.areas = BESIDE_THE_HSM
    site.kube.create_namespace(site.istio_namespace)
    site.bao.write(f"sys/mounts/asm-{site.suffix}", {"type": "kv", "options": {"version": "1"}})
    assert site.run("apply").code == 0
    site.core.create_namespaced_secret(
        site.reviewer_namespace, client.V1Secret(metadata=client.V1ObjectMeta(name="theirs"))
    )
    undone = site.run("undo", "--yes")
    notes = {step["step"]: step["notes"] for step in undone.document["steps"]}
    assert notes["istio-namespace"] == [f"Namespace {site.istio_namespace} was there before"]
    assert notes["kv-mount"] == [f"kv mount asm-{site.suffix} was there before"]
    assert notes["reviewer-namespace"] == [
        f"Namespace {site.reviewer_namespace} still holds Secret theirs"
    ]
    assert site.namespaces() == {site.istio_namespace, site.reviewer_namespace}

    site.core.delete_namespaced_secret("theirs", site.reviewer_namespace)
    assert site.run("undo", "--yes").code == 0
    assert site.namespaces() == {site.istio_namespace}
    assert not site.state.exists()


def test_a_missing_istioctl_leaves_one_command_to_a_person(site: Site) -> None:
    site.areas = BESIDE_THE_HSM
    site.configure(istioctl=site.folder / "nowhere")
    applied = site.run("apply")
    assert applied.code == 2, applied.err
    outcomes = applied.outcomes()
    assert outcomes.pop("istio") == "manual"
    assert set(outcomes.values()) <= {"changed", "unchanged"}
    [istio] = [step for step in applied.document["steps"] if step["step"] == "istio"]
    assert "is not installed" in istio["notes"][0]
    assert "--set values.hsm.enabled=true" in istio["notes"][1]


def test_parts_are_done_apart_by_who_may_do_them(site: Site) -> None:
    assert set(site.run("apply", "--only", "hsm").outcomes()) == {"hsm-kek", "hsm-root"}
    (site.folder / "vault-token").unlink()
    applied = site.run("apply", "--only", "kubernetes")
    assert applied.code == 0, applied.err
    assert site.namespaces() == {site.istio_namespace, site.reviewer_namespace}
    assert not site.vault_leftovers()
    assert site.run("undo", "--yes", "--only", "kubernetes").code == 0
    assert not site.namespaces()


def test_no_secret_is_in_arguments_output_or_state(site: Site) -> None:
    site.areas = BESIDE_THE_HSM
    shown = [site.run(command, *flags) for command, flags in RUNS]
    [call] = [json.loads(line) for line in site.istioctl_log.read_text().splitlines()][:1]
    assert "VAULT_TOKEN_FILE" not in call["environment"]
    secret = site.core.read_namespaced_secret("default-token", site.reviewer_namespace)
    assert secret.data is not None
    token = base64.b64decode(secret.data["token"]).decode()
    seen = "".join([*(ran.out + ran.err for ran in shown), site.istioctl_log.read_text()])
    seen += site.state.read_text()
    for canary in (site.values["PIN"], site.bao.root_token, token, *key_lines(site)):
        assert canary not in seen
    assert site.suffix in seen  # the text that was looked through is the right one
    assert site.state.stat().st_mode & 0o777 == 0o600


RUNS = [
    ("plan", ()),
    ("apply", ()),
    ("plan", ()),
    ("apply", ("--vault-token-file", "/nonexistent")),
]


def test_a_refused_vault_token_is_told_and_changes_nothing(site: Site) -> None:
    (site.folder / "vault-token").write_text("canary-wrong-token\n")
    refused = site.run("plan", "--only", "vault")
    assert refused.code == 1
    error, hint = refused.err.splitlines()
    assert error.startswith("error: Vault refuses to")
    assert "--vault-token-file" in hint
    assert "canary" not in refused.err


def test_a_vault_under_another_ca_is_not_trusted(site: Site) -> None:
    site.config.write_text(site.config.read_text().replace(str(site.bao.ca_file), "root.pem"))
    refused = site.run("plan", "--only", "vault")
    assert refused.code == 1
    assert "could not prove who it is" in refused.err


def test_the_service_of_another_revision_is_not_taken_over(site: Site) -> None:
    site.kube.create_namespace(site.istio_namespace)
    site.core.create_namespaced_service(
        site.istio_namespace,
        client.V1Service(
            metadata=client.V1ObjectMeta(name="istiod", labels={"istio.io/rev": "stable"}),
            spec=client.V1ServiceSpec(ports=[client.V1ServicePort(port=15012)]),
        ),
    )
    refused = site.run("plan", "--only", "istio")
    assert refused.code == 1
    assert "belongs to the revision stable" in refused.err


def test_two_applies_at_a_time_are_one_too_many(site: Site) -> None:
    site.areas = BESIDE_THE_HSM
    refused: list[int] = []

    def second() -> bool:
        if site.started_step() == "kv-mount":
            ran = site.run("apply", "--resume")
            assert "another istio-hsm is at work" in ran.err
            refused.append(ran.code)
        return bool(refused)

    site.kill_when("apply", second)
    if refused:
        assert refused == [1]
    site.run("apply", "--resume")


def login(site: Site, account: str, namespace: str, *, kv_version: int = 1) -> dict[str, str]:
    """Log in as istiod's pod would, and return what it may read."""
    accounts = [entry.metadata.name for entry in accounts_of(site, namespace) if entry.metadata]
    if account not in accounts:
        site.kube.create_service_account(namespace, account)
    session = requests.Session()
    session.trust_env = False
    session.verify = str(site.bao.ca_file)
    answer = session.post(
        f"{site.bao.address}/v1/auth/{site.path}/login",
        json={"role": "istiod", "jwt": site.kube.service_account_token(namespace, account)},
        timeout=20,
    )
    if account != "default":
        site.core.delete_namespaced_service_account(account, namespace)
    answer.raise_for_status()
    part = "/data" if kv_version == 2 else ""
    mount, _, name = site.path.partition("/")
    found = session.get(
        f"{site.bao.address}/v1/{mount}{part}/{name}",
        headers={"X-Vault-Token": answer.json()["auth"]["client_token"]},
        timeout=20,
    )
    found.raise_for_status()
    data: dict[str, str] = found.json()["data"]
    return data["data"] if kv_version == 2 else data  # type: ignore[return-value]  # version 2 nests


def accounts_of(site: Site, namespace: str) -> list[client.V1ServiceAccount]:
    return list(site.core.list_namespaced_service_account(namespace).items)


def secrets_of(site: Site) -> list[str]:
    found = site.core.list_namespaced_secret(site.reviewer_namespace).items
    return [str(entry.metadata.name) for entry in found if entry.metadata]


def key_lines(site: Site) -> list[str]:
    """Return the lines of the private key that are its own."""
    lines = site.values["clientkey"].splitlines()
    return [line for line in lines if line and not line.startswith("-----")]


def test_the_preflight_tells_all_that_stands_in_the_way(site: Site) -> None:
    site.kube.create_namespace(site.istio_namespace)
    site.core.create_namespaced_secret(
        site.istio_namespace, client.V1Secret(metadata=client.V1ObjectMeta(name="cacerts"))
    )
    site.configure(istioctl=site.folder / "nowhere")
    found = site.run("check")
    assert found.code == 79, found.err
    causes = {finding["group"]: finding["cause"] for finding in found.document["findings"]}
    assert "nowhere is not installed" in causes["tools"]
    assert "GB, not 15" in causes["cluster"]  # this cluster has no node at all
    assert "Secret cacerts" in causes["conflicts"]
    assert not {"vault", "clock", "rights"} & set(causes)
    assert all(f["hint"] and f["link"] for f in found.document["findings"])


def test_the_preflight_finds_missing_rights_and_a_sealed_vault(site: Site) -> None:
    site.bao.seal()
    try:
        found = site.run("check", "--kubeconfig", str(site.kube.kubeconfig("jane")))
    finally:
        site.bao.unseal()
    assert found.code == 79, found.err
    causes = [finding["cause"] for finding in found.document["findings"]]
    assert "Vault is sealed" in causes
    assert "you may not create namespaces" in causes
    assert any("is forbidden" in cause or "cannot list" in cause for cause in causes)
