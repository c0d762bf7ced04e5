"""One SoftHSM2 token, plugin and serving bridge for the tests that do not break them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.istiod_ca_bridge import harness
from tests.support import pki, plugin, softhsm


@dataclass(frozen=True, slots=True)
class Mesh:
    """A plugin whose token trusts a root."""

    plugin: plugin.Plugin
    root: pki.Issued


@dataclass(frozen=True, slots=True)
class ServingMesh:
    """A mesh whose bridge serves."""

    plugin: plugin.Plugin
    root: pki.Issued
    bridge: harness.Bridge
    tokens: harness.TokenIssuer


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    folder = tmp_path_factory.mktemp("hsm")
    hsm = softhsm.make_token(folder / "token")
    with plugin.running(hsm, folder / "plugin") as running:
        root = harness.strict_root()
        harness.prepare(running, root)
        yield Mesh(running, root)


@pytest.fixture(scope="module")
def serving(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingMesh]:
    folder = tmp_path_factory.mktemp("bridge")
    tokens = harness.token_issuer()
    with harness.running_bridge(
        folder, mesh.plugin.socket, token_settings(folder, tokens)
    ) as bridge:
        harness.bring_to_serving(bridge, mesh.plugin, mesh.root)
        yield ServingMesh(mesh.plugin, mesh.root, bridge, tokens)


def token_settings(folder: Path, tokens: harness.TokenIssuer) -> dict[str, str]:
    path = folder / "jwks.json"
    path.write_text(tokens.jwks())
    return {"JWKS_FILE": str(path), "TOKEN_ISSUER": harness.ISSUER}
