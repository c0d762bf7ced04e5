"""A node whose clock is hours off: the cause is named as such, and the right time mends it."""

from datetime import timedelta
from pathlib import Path

import pytest

from tests.e2e.vault_client.conftest import Mesh
from tests.support.fake_clock import FakeClock
from tests.support.hsm_credentials import make_credentials
from tests.support.pki import MOMENT
from tests.support.vault_client import ClientProcess


@pytest.fixture
def clock(tmp_path: Path) -> FakeClock:
    return FakeClock(tmp_path / "clock")


def test_a_clock_far_behind_makes_vaults_certificate_untimely_until_it_is_right(
    mesh: Mesh, clock: FakeClock
) -> None:
    clock.set_ahead(-5)
    with mesh.client(**clock.environment()) as client:
        status = client.wait_status(state="starting", cause="tls", reason="clock")
        assert "certificate is not yet valid, and it is 20" in str(status["message"])
        assert "chronyc tracking" in str(status["hint"])
        clock.set_ahead(0)
        client.wait_status(state="ready", cause=None)


def test_a_clock_days_ahead_makes_vaults_certificate_expired_and_keeps_the_set(
    mesh: Mesh, clock: FakeClock
) -> None:
    clock.set_ahead(0)
    with mesh.client(**clock.environment()) as client:
        client.wait_status(state="ready")
        clock.set_ahead(48)
        mesh.bao.stop()  # the connection in use was judged when it was made
        mesh.bao.start()
        status = client.wait_status(state="degraded", cause="tls", reason="expired")
        assert "certificate has expired, and it is 20" in str(status["message"])
        assert (client.output / "pin").exists()
        clock.set_ahead(0)
        client.wait_status(state="ready", cause=None)


def test_a_clock_hours_ahead_does_not_have_a_sound_set_called_expired(
    mesh: Mesh, clock: FakeClock
) -> None:
    clock.set_ahead(0)
    with mesh.client(**clock.environment()) as client:
        client.wait_status(state="ready", kv_version=1)
        clock.set_ahead(5)
        short = make_credentials(mark="two", valid_until=MOMENT + timedelta(hours=3))
        mesh.bao.put_v2(mesh.namespace, "istiod", short)
        status = client.wait_status(state="degraded", cause="invalid", reason="clock")
        assert "Vault's clock is 1" in str(status["message"])
        assert "s behind ours, and by that one it is" in str(status["message"])
        assert client.file("pin").endswith("-one")
        clock.set_ahead(0)
        client.wait_status(state="ready", cause=None, kv_version=2)
        assert client.file("pin") == short["PIN"]


def test_a_clock_ahead_that_harms_nothing_is_warned_of_once(mesh: Mesh, clock: FakeClock) -> None:
    clock.set_ahead(5)
    with mesh.client(**clock.environment()) as client:
        client.wait_status(state="ready", cause=None)
        warning = client.wait_event("clock.differs")
        assert str(warning["vault"]).endswith("s behind ours")
        await_poll(client)
        await_poll(client)
        assert client.count("clock.differs") == 1


def test_a_clock_ahead_does_not_have_a_living_token_called_expired(
    mesh: Mesh, clock: FakeClock
) -> None:
    clock.set_ahead(5)  # past the end of our token, by ours
    mesh.write_jwt(audience="another")
    with mesh.client(**clock.environment()) as client:
        client.wait_status(state="starting", cause="forbidden", reason="audience")
        mesh.write_jwt()
        client.wait_status(state="ready", cause=None)


def await_poll(client: ClientProcess) -> None:
    """Return after one more poll that succeeded."""
    before = client.status()["last_success"]
    client.wait(lambda: client.status()["last_success"] != before, "another poll")
