"""Vault, its client, the plugin and the token: a new PIN is taken up, a wrong one costs nothing."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.vault_client.conftest import Mesh
from tests.support import plugin as plugins
from tests.support.plugin import Plugin
from tests.support.softhsm import SoftHsm, make_token
from tests.support.token_view import viewed

FIRST, SECOND, WRONG = "271828", "314159", "000000"


@pytest.fixture
def hsm(tmp_path: Path) -> SoftHsm:
    return make_token(tmp_path / "hsm", pin=FIRST)


@pytest.fixture
def plugin(hsm: SoftHsm, mesh: Mesh, tmp_path: Path) -> Iterator[Plugin]:
    """A plugin that awaits the PIN that the Vault client will deliver."""
    pin_file = {"P11_PIN_FILE": str(mesh.output / "pin")}
    with plugins.running(hsm, tmp_path / "plugin", environment=pin_file, wanted=None) as running:
        yield running


def test_the_plugin_takes_up_a_new_pin_and_tries_a_wrong_one_once(
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

        mesh.put(mesh.values | {"PIN": WRONG})
        client.wait_event("consumer.answered", accepted=False)
        plugin.wait_until(lambda: "was refused before" in refusals(plugin), "a second refusal")
        assert refusals(plugin).count("refused the PIN") == 1
        assert plugin.health() == plugins.SERVING

        third = mesh.put(mesh.values | {"PIN": SECOND})
        client.wait_status(state="ready", acknowledged=True, kv_version=third)


def refusals(plugin: Plugin) -> str:
    return "\n".join(str(entry["message"]) for entry in plugin.events("rpc.refused"))
