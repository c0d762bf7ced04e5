"""One token for as long as it lives: renewed, replaced at its maximum, revoked at the end."""

import pytest

from tests.integration.vault_client.conftest import Mesh, set_role
from tests.support.vault_client import ClientProcess, run_client


def tokens(mesh: Mesh) -> list[str]:
    """Return the accessors of the tokens that carry this mesh's policy."""
    bao = mesh.bao
    data = bao.list("auth/token/accessors")
    found = []
    for accessor in data:
        try:
            about = bao.write("auth/token/lookup-accessor", {"accessor": accessor})["data"]
        except RuntimeError:
            continue
        assert isinstance(about, dict)
        if mesh.name in about["policies"]:
            found.append(accessor)
    return found


def polls(client: ClientProcess, count: int) -> None:
    """Wait until the secret was read so many times more."""
    seen: set[object] = set()

    def enough() -> bool:
        seen.add(client.status()["last_success"])
        return len(seen) > count

    client.wait(enough, f"{count} polls")


def test_many_polls_make_one_login(mesh: Mesh) -> None:
    with mesh.client() as client:
        client.wait_status(state="ready")
        polls(client, 5)
        assert client.metrics()["vault_client_logins_total"] == 1
        assert len(tokens(mesh)) == 1


def test_the_token_is_revoked_on_sigterm(mesh: Mesh) -> None:
    with mesh.client() as client:
        client.wait_status(state="ready")
        assert len(tokens(mesh)) == 1
        assert client.terminate() == 0
    assert tokens(mesh) == []


def test_the_token_is_revoked_after_one_delivery(mesh: Mesh) -> None:
    assert run_client(mesh.environment(), "--once").returncode == 0
    assert tokens(mesh) == []


@pytest.mark.parametrize(("policy", "left"), [("keep", True), ("wipe", False)])
def test_the_set_stays_or_goes_on_sigterm_as_told(mesh: Mesh, policy: str, *, left: bool) -> None:
    with mesh.client(ON_EXIT=policy) as client:
        client.wait_status(state="ready")
        assert client.terminate() == 0
        assert (client.output / "pin").exists() is left


def test_a_token_is_renewed_and_replaced_at_its_maximum_without_a_gap(mesh: Mesh) -> None:
    set_role(mesh, ttl="2s", max_ttl="4s")
    with mesh.client() as client:
        client.wait_event("token.renewed")
        client.wait(lambda: client.count("login.succeeded") >= 3, "two logins more")
        assert client.count("token.renewed") >= 2
        assert client.count("delivery.failed") == 0, client.log
        assert len(tokens(mesh)) == 1


def test_a_token_is_renewed_in_time_however_rare_the_polls(mesh: Mesh) -> None:
    set_role(mesh, ttl="2s")
    with mesh.client(POLL_INTERVAL="1h") as client:
        client.wait(lambda: client.count("token.renewed") >= 2, "two renewals")
        assert client.count("delivery.failed") == 0


def test_a_token_revoked_on_the_server_is_replaced_by_a_new_login(mesh: Mesh) -> None:
    with mesh.client() as client:
        client.wait_status(state="ready")
        (accessor,) = tokens(mesh)
        mesh.bao.write("auth/token/revoke-accessor", {"accessor": accessor})
        client.wait_event("token.lost")
        client.wait(lambda: client.count("login.succeeded") == 2, "a second login")
        client.wait_status(state="ready")
        assert client.count("delivery.failed") == 0


def test_a_rotated_projected_token_is_read_anew_at_the_next_login(mesh: Mesh) -> None:
    with mesh.client() as client:
        client.wait_status(state="ready")
        mesh.write_jwt(audience="another")
        (accessor,) = tokens(mesh)
        mesh.bao.write("auth/token/revoke-accessor", {"accessor": accessor})
        client.wait_status(state="degraded", cause="rejected")
        mesh.write_jwt()
        client.wait_status(state="ready")
