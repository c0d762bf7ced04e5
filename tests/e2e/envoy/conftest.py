"""A bridge that serves from a SoftHSM key and keeps revocation lists, for RSA and for P-256."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.envoy.sidecars import SERVER, Agent, agent
from tests.integration.istiod_ca_bridge import harness
from tests.integration.istiod_ca_bridge.conftest import token_settings
from tests.support import pki, plugin, softhsm


@dataclass(frozen=True, slots=True)
class Mesh:
    """A CA, and what gives its workloads their tokens."""

    bridge: harness.Bridge
    root: pki.Issued
    tokens: harness.TokenIssuer
    crl: Path

    @property
    def revocations(self) -> Path:
        return self.bridge.secrets / "istio-ca-revocations"

    def agent(self, folder: Path, account: str) -> Agent:
        def ask(held: harness.Workload | None) -> harness.Workload:
            token = None if held else self.tokens.token(account=account)
            return harness.create_certificate(self.bridge, token=token, client=held)

        return agent(folder / account, ask, self.crl)

    def server(self, folder: Path) -> Agent:
        return self.agent(folder, SERVER)


@pytest.fixture(scope="module", params=["rsa-2048", "ecdsa-p256"])
def mesh(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mesh]:
    folder = tmp_path_factory.mktemp("mesh")
    tokens = harness.token_issuer()
    crl = folder / "crl" / "ca-crl.pem"
    crl.parent.mkdir()
    settings = token_settings(folder, tokens) | {
        "CA_KEY_ALGORITHM": request.param,
        "CA_CRL": "true",
        "CRL_FILE": str(crl),
    }
    hsm, root = softhsm.make_token(folder / "token"), harness.strict_root()
    with plugin.running(hsm, folder / "plugin") as running:
        harness.prepare(running, root)
        with harness.running_bridge(folder, running.socket, settings) as bridge:
            harness.bring_to_serving(bridge, running, root)
            yield Mesh(bridge, root, tokens, crl)
