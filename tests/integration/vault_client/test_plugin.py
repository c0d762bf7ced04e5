"""Vault, its client, the plugin and the token: a new PIN is taken up, a wrong one costs nothing."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.vault_client.conftest import Mesh
from tests.support import plugin as plugins
from tests.support.plugin import Plugin
from tests.support.softhsm import SoftHsm, make_token
from tests.support.token_view import viewed

FIRST, SECOND, WRONG = "271828", "314159", "wrong-pin-canary"


@pytest.fixture
def hsm(tmp_path: Path) -> SoftHsm:
    return make_token(tmp_path / "hsm", pin=FIRST)


@pytest.fixture
def plugin(hsm: SoftHsm, mesh: Mesh, tmp_path: Path) -> Iterator[Plugin]:
    """A plugin that awaits the PIN that the Vault client will deliver."""
    pin_file = {"P11_PIN_FILE": str(mesh.output / "pin")}
    with plugins.running(hsm, tmp_path / "plugin", environment=pin_file, wanted=None) as running:
        yield running


def test_a_new_pin_is_tried_then_published_then_taken_up(
    hsm: SoftHsm, mesh: Mesh, plugin: Plugin
) -> None:
    mesh.put(mesh.values | {"PIN": FIRST})
    with mesh.client(HSM_PLUGIN_SOCKET=str(plugin.socket)) as client:
        client.wait_status(state="ready", acknowledged=True)
        plugin.await_health(plugins.SERVING)
        before = len(plugin.events("token.connected"))

        with viewed(hsm) as view:
            view.session.set_pin(FIRST, SECOND)
        second = mesh.put(mesh.values | {"PIN": SECOND})
        client.wait_status(state="ready", acknowledged=True, kv_version=second)
        assert len(plugin.events("token.connected")) == before + 1
        assert verdicts(plugin)[-1] == "ACCEPTED"

        third = mesh.put(mesh.values | {"PIN": SECOND, "extra": "unused"})
        client.wait_status(state="ready", acknowledged=True, kv_version=third)
        assert verdicts(plugin)[-1] == "IN_USE"


def test_a_wrong_pin_is_tried_once_and_never_published(
    hsm: SoftHsm, mesh: Mesh, plugin: Plugin
) -> None:
    first = mesh.put(mesh.values | {"PIN": FIRST})
    with mesh.client(HSM_PLUGIN_SOCKET=str(plugin.socket)) as client:
        client.wait_status(state="ready", acknowledged=True, kv_version=first)
        plugin.await_health(plugins.SERVING)

        mesh.put(mesh.values | {"PIN": WRONG})
        status = client.wait_status(
            state="degraded", cause="trial", reason="refused", kv_version=first
        )
        assert f'the token "{hsm.label}" refused the PIN' in str(status["message"])
        assert client.file("pin") == FIRST
        failures = 'vault_client_failures_total{cause="trial"}'
        client.wait(lambda: client.metrics()[failures] >= 3, "two more polls")
        assert verdicts(plugin).count("REFUSED") == 1
        assert plugin.health() == plugins.SERVING
        assert WRONG not in client.log + plugin.text()

        second = mesh.put(mesh.values | {"PIN": FIRST})
        client.wait_status(state="ready", cause=None, acknowledged=True, kv_version=second)


def test_without_a_trial_the_plugin_tries_a_wrong_pin_once_and_keeps_what_it_has(
    mesh: Mesh, plugin: Plugin
) -> None:
    first = mesh.put(mesh.values | {"PIN": FIRST})
    settings = {"HSM_PLUGIN_SOCKET": str(plugin.socket), "TRIAL_LOGIN": "off"}
    with mesh.client(**settings) as client:
        client.wait_status(state="ready", acknowledged=True, kv_version=first)
        plugin.await_health(plugins.SERVING)
        mesh.put(mesh.values | {"PIN": WRONG})
        client.wait_event("consumer.answered", accepted=False)
        plugin.wait_until(lambda: "was refused before" in refusals(plugin), "a second refusal")
        assert refusals(plugin).count("refused the PIN") == 1
        assert plugin.health() == plugins.SERVING
        assert verdicts(plugin) == []

        third = mesh.put(mesh.values | {"PIN": FIRST})
        client.wait_status(state="ready", acknowledged=True, kv_version=third)


def refusals(plugin: Plugin) -> str:
    return "\n".join(str(entry["message"]) for entry in plugin.events("rpc.refused"))


def verdicts(plugin: Plugin) -> list[str]:
    return [str(entry["verdict"]) for entry in plugin.events("credentials.tried")]
