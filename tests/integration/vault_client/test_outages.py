"""Each cause is a state of its own, the last good set stays or goes as its policy says."""

import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from tests.integration.vault_client.conftest import Mesh
from tests.integration.vault_client.stub import against, stub_server
from tests.support.hsm_credentials import make_credentials
from tests.support.openbao import OpenBao
from tests.support.pki import root
from tests.support.vault_client import ClientProcess, run_client
from vault_client.vault import Vault


@contextmanager
def stopped(bao: OpenBao) -> Iterator[None]:
    """The server is gone inside, and back afterwards."""
    bao.stop()
    try:
        yield
    finally:
        bao.start()


@contextmanager
def sealed(bao: OpenBao) -> Iterator[None]:
    bao.seal()
    try:
        yield
    finally:
        bao.unseal()


def pin(client: ClientProcess) -> str:
    return client.file("pin")


def test_a_client_that_starts_before_vault_waits_and_then_delivers(fragile_mesh: Mesh) -> None:
    outage = ExitStack()
    outage.enter_context(stopped(fragile_mesh.bao))
    with outage, fragile_mesh.client() as client:
        status = client.wait_status(state="starting", cause="unreachable")
        assert status["hint"]
        assert client.get("/readyz")[0] == 503
        assert client.get("/healthz")[0] == 200
        outage.close()
        client.wait_status(state="ready", cause=None)
        assert pin(client) == fragile_mesh.values["PIN"]


def test_a_vault_that_is_sealed_and_unsealed_again_is_waited_for(fragile_mesh: Mesh) -> None:
    with fragile_mesh.client() as client:
        client.wait_status(state="ready")
        with sealed(fragile_mesh.bao):
            status = client.wait_status(state="degraded", cause="sealed")
            assert status["hint"] == "unseal it: bao operator unseal"
            assert client.get("/readyz")[0] == 200
            assert pin(client) == fragile_mesh.values["PIN"]
        client.wait_status(state="ready", cause=None)


def test_a_client_that_starts_on_a_sealed_vault_says_so(fragile_mesh: Mesh) -> None:
    with sealed(fragile_mesh.bao), fragile_mesh.client() as client:
        client.wait_status(state="starting", cause="sealed")
        assert not (client.output / "pin").exists()


def test_a_vault_that_goes_away_leaves_the_last_good_set(fragile_mesh: Mesh) -> None:
    with fragile_mesh.client() as client:
        client.wait_status(state="ready")
        with stopped(fragile_mesh.bao):
            client.wait_status(state="degraded", cause="unreachable")
            assert pin(client) == fragile_mesh.values["PIN"]
        client.wait_status(state="ready")


def test_the_same_outage_wipes_the_set_where_the_policy_says_so(fragile_mesh: Mesh) -> None:
    with fragile_mesh.client(ON_UNREACHABLE="wipe") as client:
        client.wait_status(state="ready")
        with stopped(fragile_mesh.bao):
            client.wait_status(state="revoked", cause="unreachable")
            assert list(client.output.iterdir()) == []
            assert client.get("/readyz")[0] == 503
        client.wait_status(state="ready")
        assert pin(client) == fragile_mesh.values["PIN"]


def test_a_rotated_ca_is_taken_up_from_its_file_and_the_old_one_dropped(
    fragile_mesh: Mesh,
) -> None:
    bao = fragile_mesh.bao
    with fragile_mesh.client() as client:
        client.wait_status(state="ready")
        bao.use_ca(root("New Vault CA"))
        with stopped(bao):
            client.wait_status(state="degraded")
        assert "CA" in str(client.wait_status(state="degraded", cause="tls")["hint"])
        bao.ca_file.write_bytes(bao.ca.pem)
        client.wait_status(state="ready")
        assert client.count("ca.changed") == 1


def test_a_deleted_version_is_told_from_a_missing_one_and_can_come_back(mesh: Mesh) -> None:
    with mesh.client() as client:
        client.wait_status(state="ready")
        mesh.bao.delete(f"{mesh.name}/data/istiod")
        status = client.wait_status(state="degraded", cause="deleted")
        assert "undelete -versions=1" in str(status["hint"])
        mesh.bao.write(f"{mesh.name}/undelete/istiod", {"versions": [1]})
        client.wait_status(state="ready")


def test_a_deleted_secret_is_wiped_when_its_grace_is_over(mesh: Mesh) -> None:
    with mesh.client(ON_DELETED="grace=2s") as client:
        client.wait_status(state="ready")
        mesh.bao.delete(f"{mesh.name}/data/istiod")
        client.wait_status(state="degraded", cause="deleted")
        assert pin(client)
        client.wait_status(state="revoked", cause="deleted")
        assert not (client.output / "pin").exists()
        mesh.bao.write(f"{mesh.name}/undelete/istiod", {"versions": [1]})
        client.wait_status(state="ready")


def test_a_destroyed_version_is_named(mesh: Mesh) -> None:
    with mesh.client() as client:
        client.wait_status(state="ready")
        mesh.bao.write(f"{mesh.name}/destroy/istiod", {"versions": [1]})
        client.wait_status(state="degraded", cause="destroyed")


def test_a_path_where_nothing_was_ever_written_is_missing(mesh: Mesh) -> None:
    mesh.bao.allow(mesh.name, {f"{mesh.name}/data/*": "read"})
    done = run_client(mesh.environment(VAULT_KV_PATH=f"{mesh.name}/other"), "--once")
    assert done.returncode == 66
    assert f"there is no secret at {mesh.name}/data/other" in done.stderr


def test_a_bad_new_version_leaves_the_last_good_set(mesh: Mesh) -> None:
    with mesh.client() as client:
        client.wait_status(state="ready")
        mesh.put(mesh.values | {"clientkey": make_credentials()["clientkey"]})
        status = client.wait_status(state="degraded", cause="invalid")
        assert "does not belong" in str(status["message"])
        assert status["kv_version"] == 1
        assert pin(client) == mesh.values["PIN"]
        better = make_credentials(mark="better")
        mesh.put(better)
        client.wait_status(state="ready", kv_version=3)
        assert pin(client) == better["PIN"]


def test_a_certificate_that_expires_in_place_degrades_the_state(mesh: Mesh) -> None:
    mesh.put(make_credentials(valid_until=datetime.now(UTC) + timedelta(seconds=4)))
    with mesh.client() as client:
        client.wait_status(state="ready")
        assert "expired at" in str(client.wait_status(cause="invalid")["message"])


def test_a_certificate_that_is_not_yet_valid_here_points_at_the_clocks(mesh: Mesh) -> None:
    mesh.put(make_credentials(valid_from=datetime.now(UTC) + timedelta(hours=2)))
    done = run_client(mesh.environment(), "--once")
    assert done.returncode == 65
    assert "is not valid before" in done.stderr


def test_too_many_requests_are_rate_limited_and_retry_after_is_honoured(mesh: Mesh) -> None:
    mesh.bao.write("sys/quotas/config", {"enable_rate_limit_response_headers": True})
    mesh.bao.write(
        f"sys/quotas/rate-limit/{mesh.name}",
        {"path": f"{mesh.name}/", "rate": 1, "interval": "5s"},
    )
    with mesh.client() as client:
        client.wait_status(state="ready")
        client.wait_status(state="degraded", cause="rate_limited")
        asked = client.wait_event("delivery.failed", cause="rate_limited")["retry_in_seconds"]
        assert isinstance(asked, float)
        assert asked >= 1.0
    mesh.bao.delete(f"sys/quotas/rate-limit/{mesh.name}")


@pytest.mark.parametrize("status", [500, 502, 503])
def test_a_server_error_is_not_taken_for_a_sealed_vault(mesh: Mesh, status: int) -> None:
    with stub_server(status) as address:
        done = run_client(against(mesh, address), "--once")
    assert done.returncode == 69
    assert f"Vault answers {status}" in done.stderr


def test_what_answers_with_a_page_is_not_taken_for_vault(mesh: Mesh) -> None:
    with stub_server(200, body=b"<html>hello</html>") as address:
        done = run_client(against(mesh, address), "--once")
    assert done.returncode == 69
    assert "holds no token" in done.stderr


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("gopher://127.0.0.1/", "redirects to another scheme"),
        ("/v1/sys", "redirects to another scheme"),
        ("http://[::1", "redirects to what is no address"),
    ],
)
def test_a_redirect_to_another_scheme_or_nowhere_is_not_followed(
    mesh: Mesh, location: str, reason: str
) -> None:
    with stub_server(307, {"Location": location}) as address:
        done = run_client(against(mesh, address), "--once")
    assert done.returncode == 69
    assert reason in done.stderr


def test_a_standby_that_redirects_to_the_active_node_is_followed(mesh: Mesh) -> None:
    with stub_server(500) as active, stub_server(307, {"Location": f"{active}/"}) as standby:
        done = run_client(against(mesh, standby), "--once")
    assert "Vault answers 500" in done.stderr


def test_the_next_active_node_is_found_when_the_one_before_is_gone() -> None:
    locations: dict[str, str] = {}
    with stub_server(307, locations) as standby, stub_server(404) as second:
        vault = Vault(standby, namespace=None, ca_pem=None, timeout_seconds=5.0)
        with stub_server(400) as first:
            locations["Location"] = f"{first}/"
            assert vault.login_status("kubernetes", {}) == 400
        locations["Location"] = f"{second}/"
        assert vault.login_status("kubernetes", {}) == 404
        vault.close()


def test_a_server_that_answers_without_end_is_not_read_to_it(mesh: Mesh) -> None:
    with stub_server(200, body=b'{"auth": "' + bytes(5 << 20) + b'"}') as address:
        done = run_client(against(mesh, address), "--once")
    assert done.returncode == 69
    assert "answers more than 4194304 bytes" in done.stderr


def test_a_server_that_never_answers_times_out(mesh: Mesh) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"https://127.0.0.1:{silent.getsockname()[1]}"
        done = run_client(mesh.environment(VAULT_ADDR=address, REQUEST_TIMEOUT="300ms"), "--once")
    assert done.returncode == 69
    assert "no answer from" in done.stderr


def test_a_clock_that_differs_from_vaults_is_named_as_the_cause(mesh: Mesh) -> None:
    ahead = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    with stub_server(lambda body: 400 if body == b"{}" else 403, {"Date": ahead}) as address:
        done = run_client(against(mesh, address), "--once")
    assert done.returncode == 77
    assert re.search(r"Vault's clock is 3[56]\d\d s ahead of ours", done.stderr)


def test_a_token_of_the_future_points_at_the_issuers_clock(mesh: Mesh) -> None:
    mesh.write_jwt(starts=3600, ends=7200)
    done = run_client(mesh.environment(), "--once")
    assert done.returncode == 77
    assert "the clock of its issuer is ahead" in done.stderr


def test_an_expired_token_is_named(mesh: Mesh) -> None:
    mesh.write_jwt(starts=-7200, ends=-3600)
    done = run_client(mesh.environment(), "--once")
    assert done.returncode == 77
    assert "our token expired at" in done.stderr
    assert "kubectl -n istio-system create token istiod" in done.stderr


def test_a_token_file_that_is_not_there_is_no_fault_of_vaults(mesh: Mesh) -> None:
    mesh.jwt_file.unlink()
    done = run_client(mesh.environment(), "--once")
    assert done.returncode == 77
    assert "cannot be read from" in done.stderr
