"""None of the planted secrets appears anywhere but in the files that are theirs."""

import base64
from pathlib import Path

from tests.integration.vault_client.conftest import Mesh
from tests.integration.vault_client.test_delivery import approle, token_file
from tests.integration.vault_client.test_token_life import tokens
from tests.support.hsm_credentials import make_credentials
from tests.support.vault_client import ClientProcess


def canaries(*secrets: str) -> list[str]:
    """Return what a leak of these would show: whole, by line, encoded."""
    found: list[str] = []
    for secret in secrets:
        found.append(secret)
        found += [line for line in secret.splitlines() if len(line) > 16 and "-----" not in line]
        found.append(base64.b64encode(secret.encode()).decode())
        found.append(secret.encode().hex())
    return found


def surfaces(client: ClientProcess) -> dict[str, str]:
    """Return everything that others may see of the process."""
    process = Path("/proc") / str(client.running.pid)
    return {
        "log": client.log,
        "cmdline": process.joinpath("cmdline").read_bytes().decode(),
        "environ": process.joinpath("environ").read_bytes().decode(),
        "metrics": client.get("/metrics")[1].decode(),
        "readyz": client.get("/readyz")[1].decode(),
        "healthz": client.get("/healthz")[1].decode(),
        "manifest": (client.output / "manifest.json").read_text(),
        "names": " ".join(path.name for path in client.output.rglob("*")),
    }


def assert_clean(client: ClientProcess, planted: list[str]) -> None:
    for surface, text in surfaces(client).items():
        assert not [canary for canary in planted if canary in text], f"a leak in {surface}"


def test_no_secret_leaks_while_all_is_well_and_while_everything_fails(mesh: Mesh) -> None:
    bad = make_credentials(mark="bad") | {"PIN": "  canary-pin-with-spaces  "}
    token = mesh.jwt_file.read_text()
    secrets = [token, *mesh.values.values(), bad["clientkey"], bad["PIN"], bad["PIN"].strip()]
    planted = canaries(*[secret for secret in secrets if "CERTIFICATE" not in secret])
    with mesh.client(LOG_LEVEL="debug") as client:
        client.wait_status(state="ready")
        assert_clean(client, planted)
        mesh.put(bad)
        client.wait_status(cause="invalid")
        mesh.bao.allow(mesh.name, {f"{mesh.name}/data/other": "read"})
        client.wait_status(cause="forbidden")
        rejected = mesh.write_jwt(audience="another")
        for accessor in tokens(mesh):
            mesh.bao.write("auth/token/revoke-accessor", {"accessor": accessor})
        client.wait_status(cause="rejected")
        assert_clean(client, planted + canaries(rejected))
        assert client.terminate() == 0
        assert not [canary for canary in planted if canary in client.log]


def test_the_canaries_are_found_where_they_do_lie(mesh: Mesh) -> None:
    with mesh.client() as client:
        client.wait_status(state="ready")
        planted = canaries(mesh.values["PIN"])
        assert [canary for canary in planted if canary in client.file("pin")]


def test_no_approle_id_and_no_token_leaks(mesh: Mesh) -> None:
    for environment in (approle(mesh), token_file(mesh)[0]):
        planted = canaries(
            *(
                Path(environment[name]).read_text()
                for name in ("VAULT_ROLE_ID_PATH", "VAULT_SECRET_ID_PATH", "VAULT_TOKEN_PATH")
                if name in environment
            )
        )
        with mesh.client(**environment, LOG_LEVEL="debug") as client:
            client.wait_status(state="ready")
            assert_clean(client, planted)


def test_memory_is_closed_to_core_dumps_and_small(mesh: Mesh) -> None:
    with mesh.client() as client:
        client.wait_status(state="ready")
        process = Path("/proc") / str(client.running.pid)
        limits = process.joinpath("limits").read_text()
        core = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
        assert core.split()[4:6] == ["0", "0"]
        status = dict(
            line.split(":", 1) for line in process.joinpath("status").read_text().splitlines()
        )
        assert int(status["VmRSS"].split()[0]) < 60 * 1024
