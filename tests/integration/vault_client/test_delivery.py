"""One delivery from a real OpenBao: log in, read, verify, publish."""

import json
import os
import stat
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.integration.vault_client.conftest import Mesh, set_up
from tests.support.hsm_credentials import make_credentials
from tests.support.pki import root
from tests.support.vault_client import run_client

FILES = {
    "clientcert.pem": "clientcert",
    "clientkey.pem": "clientkey",
    "servercert.pem": "servercert",
    "pin": "PIN",
}


def delivered(output: Path, names: dict[str, str] = FILES) -> dict[str, str]:
    return {key: (output / name).read_text() for name, key in names.items()}


def test_the_secret_of_a_version_2_mount_arrives_whole_under_the_plain_names(mesh: Mesh) -> None:
    done = run_client(mesh.environment(), "--once")
    assert done.returncode == 0, done.stderr
    assert delivered(mesh.output) == mesh.values
    assert json.loads((mesh.output / "manifest.json").read_text())["kv_version"] == 1


def test_the_secret_of_a_version_1_mount_arrives_whole_too(mesh: Mesh) -> None:
    mount = f"{mesh.name}-one"
    mesh.bao.enable_kv(mount, 1)
    mesh.bao.allow(mesh.name, {f"{mount}/istiod": "read"})
    mesh.bao.write(f"{mount}/istiod", mesh.values)
    done = run_client(mesh.environment(VAULT_KV_PATH=f"{mount}/istiod"), "--once")
    assert done.returncode == 0, done.stderr
    assert delivered(mesh.output) == mesh.values


def test_the_api_path_of_a_version_2_secret_is_understood_as_well(mesh: Mesh) -> None:
    done = run_client(mesh.environment(VAULT_KV_PATH=f"{mesh.name}/data/istiod"), "--once")
    assert done.returncode == 0, done.stderr


def test_files_are_readable_by_the_owner_alone(mesh: Mesh) -> None:
    assert run_client(mesh.environment(), "--once").returncode == 0
    for name in FILES:
        assert stat.S_IMODE((mesh.output / name).stat().st_mode) == 0o400
    assert stat.S_IMODE((mesh.output / "..data/").stat().st_mode) == 0o700


def test_a_group_may_read_when_told_so(mesh: Mesh) -> None:
    gid = 1337 if os.geteuid() == 0 else os.getegid()
    environment = mesh.environment(OUTPUT_MODE="0440", OUTPUT_OWNER=f":{gid}")
    assert run_client(environment, "--once").returncode == 0
    for name in FILES:
        status = (mesh.output / name).stat()
        assert (stat.S_IMODE(status.st_mode), status.st_gid) == (0o440, gid)
    status = (mesh.output / "..data/").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_gid) == (0o750, gid)


def test_file_names_and_more_keys_come_from_the_configuration(mesh: Mesh) -> None:
    mesh.put(mesh.values | {"chrystoki": "Misc = {}"})
    environment = mesh.environment(PIN_FILENAME="hsm-pin", EXTRA_FILES="chrystoki=Chrystoki.conf")
    assert run_client(environment, "--once").returncode == 0
    assert (mesh.output / "hsm-pin").read_text() == mesh.values["PIN"]
    assert (mesh.output / "Chrystoki.conf").read_text() == "Misc = {}"


def test_a_second_run_leaves_an_unchanged_set_alone(mesh: Mesh) -> None:
    run_client(mesh.environment(), "--once")
    before = (mesh.output / "..data").readlink()
    assert run_client(mesh.environment(), "--once").returncode == 0
    assert (mesh.output / "..data").readlink() == before


def test_a_second_run_replaces_a_set_that_was_tampered_with(mesh: Mesh) -> None:
    run_client(mesh.environment(), "--once")
    pin = mesh.output / "pin"
    pin.chmod(0o600)
    pin.write_text("0000")
    assert run_client(mesh.environment(), "--once").returncode == 0
    assert delivered(mesh.output) == mesh.values


def test_a_target_on_disk_is_refused_unless_told(mesh: Mesh) -> None:
    with TemporaryDirectory(prefix=".vault-client-", dir=Path(__file__).parent) as name:
        environment = mesh.environment(OUTPUT_DIR=name)
        refused = run_client(environment, "--once")
        assert refused.returncode == 73
        assert refused.stderr.splitlines()[-1].startswith("hint: mount an emptyDir")
        assert list(Path(name).iterdir()) == []
        allowed = run_client(environment | {"VAULT_CLIENT_ALLOW_DISK": "true"}, "--once")
        assert allowed.returncode == 0, allowed.stderr


def test_a_second_client_on_the_same_directory_is_refused(mesh: Mesh) -> None:
    with mesh.client() as client:
        client.wait_status(state="ready")
        second = run_client(mesh.environment(), "--once")
    assert second.returncode == 73
    assert "another vault-client writes" in second.stderr


def test_the_ca_file_replaces_every_other_source_of_trust(mesh: Mesh, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    other.write_bytes(root("Other CA").pem)
    misleading = {name: str(other) for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")}
    done = run_client(
        mesh.environment(**misleading, HTTPS_PROXY="http://127.0.0.1:9", VAULT_TOKEN="s.wrong"),
        "--once",
    )
    assert done.returncode == 0, done.stderr


def test_a_server_of_another_ca_is_refused_whatever_the_environment_trusts(
    mesh: Mesh, tmp_path: Path
) -> None:
    other = tmp_path / "other.pem"
    other.write_bytes(root("Other CA").pem)
    trusting = {name: str(mesh.bao.ca_file) for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")}
    done = run_client(mesh.environment(VAULT_CACERT=str(other), **trusting), "--once")
    assert done.returncode == 76
    assert "could not prove who it is" in done.stderr


def test_an_approle_logs_in_from_its_two_files(mesh: Mesh) -> None:
    environment = approle(mesh)
    done = run_client(environment, "--once")
    assert done.returncode == 0, done.stderr
    assert delivered(mesh.output) == mesh.values


def test_a_wrong_secret_id_of_an_approle_is_named(mesh: Mesh) -> None:
    environment = approle(mesh)
    Path(environment["VAULT_SECRET_ID_PATH"]).write_text("00000000-0000-0000-0000-000000000000")
    done = run_client(environment, "--once")
    assert done.returncode == 77
    assert "secret id is used up, expired or wrong" in done.stderr


def approle(mesh: Mesh) -> dict[str, str]:
    mount = f"{mesh.name}-approle"
    mesh.bao.write(f"sys/auth/{mount}", {"type": "approle"})
    mesh.bao.write(f"auth/{mount}/role/istiod", {"token_policies": [mesh.name]})
    role_id = mesh.bao.read(f"auth/{mount}/role/istiod/role-id")["data"]
    secret_id = mesh.bao.write(f"auth/{mount}/role/istiod/secret-id")["data"]
    assert isinstance(role_id, dict)
    assert isinstance(secret_id, dict)
    (mesh.folder / "role-id").write_text(role_id["role_id"])
    (mesh.folder / "secret-id").write_text(secret_id["secret_id"])
    return mesh.environment(
        VAULT_AUTH_METHOD="approle",
        VAULT_AUTH_PATH=mount,
        VAULT_ROLE_ID_PATH=str(mesh.folder / "role-id"),
        VAULT_SECRET_ID_PATH=str(mesh.folder / "secret-id"),
    )


def test_a_token_file_serves_outside_kubernetes_and_is_not_revoked(mesh: Mesh) -> None:
    environment, token = token_file(mesh)
    for _ in range(2):
        done = run_client(environment, "--once")
        assert done.returncode == 0, done.stderr
    mesh.bao.write("auth/token/lookup", {"token": token})


def test_an_unknown_token_in_the_file_is_named_and_not_shown(mesh: Mesh) -> None:
    environment, _ = token_file(mesh)
    Path(environment["VAULT_TOKEN_PATH"]).write_text("s.aaaaaaaaaaaaaaaaaaaaaaaa")
    done = run_client(environment, "--once")
    assert done.returncode == 77
    assert "Vault does not know the token in VAULT_TOKEN_PATH" in done.stderr
    assert "s.aaaa" not in done.stderr


def token_file(mesh: Mesh) -> tuple[dict[str, str], str]:
    auth = mesh.bao.write("auth/token/create", {"policies": [mesh.name], "ttl": "1h"})["auth"]
    assert isinstance(auth, dict)
    path = mesh.folder / "token"
    path.write_text(auth["client_token"])
    environment = mesh.environment(VAULT_AUTH_METHOD="token", VAULT_TOKEN_PATH=str(path))
    return environment, auth["client_token"]


def test_a_namespace_is_a_world_of_its_own(mesh: Mesh) -> None:
    name = f"ns-{mesh.name}"
    mesh.bao.write(f"sys/namespaces/{name}")
    empty = run_client(mesh.environment(VAULT_NAMESPACE=name), "--once")
    assert empty.returncode == 77
    assert "no auth method is mounted" in empty.stderr
    set_up(mesh, f"{name}/")
    done = run_client(mesh.environment(VAULT_NAMESPACE=name), "--once")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("PIN", "", "PIN is not 4 to 255 bytes long"),
        ("PIN", "12 34 ", "white space around it"),
        ("clientcert", "none", "clientcert is no PEM certificate"),
        ("clientkey", "none", "clientkey is no PEM private key"),
    ],
)
def test_a_bad_set_is_refused_and_its_fault_named(
    mesh: Mesh, key: str, value: str, fault: str
) -> None:
    mesh.put(mesh.values | {key: value})
    done = run_client(mesh.environment(), "--once")
    assert done.returncode == 65
    assert fault in done.stderr
    assert not (mesh.output / "pin").exists()


def test_a_key_of_another_certificate_is_refused(mesh: Mesh) -> None:
    mesh.put(mesh.values | {"clientkey": make_credentials()["clientkey"]})
    done = run_client(mesh.environment(), "--once")
    assert done.returncode == 65
    assert "clientkey does not belong to clientcert" in done.stderr


def test_every_mistake_in_the_settings_is_reported_at_once_with_a_hint(mesh: Mesh) -> None:
    environment = mesh.environment(
        VAULT_ADDR="vault:8200", VAULT_ROLE="", OUTPUT_MODE="0777", ON_SEALED="panic"
    )
    done = run_client(environment, "--once")
    assert done.returncode == 78
    lines = done.stderr.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("error:")] == [
        "VAULT_ADDR",
        "VAULT_ROLE",
        "OUTPUT_MODE",
        "ON_SEALED",
    ]
    assert sum(line.startswith("hint:") for line in lines) == 4
