"""Many sidecars at once: whoever may have a certificate gets one, however often it has to ask."""

import dataclasses
from pathlib import Path

from tests.integration.istiod_ca_bridge import harness
from tests.integration.istiod_ca_bridge.conftest import Mesh, token_settings
from tests.integration.istiod_ca_bridge.herd import stampede

SECONDS = 60.0
SIDECARS = 500


async def test_of_a_herd_that_is_too_much_at_once_none_fails_for_good(
    mesh: Mesh, tmp_path: Path
) -> None:
    tokens = harness.token_issuer()
    narrow = {"CA_MAX_WAITING": "10"} | token_settings(tmp_path, tokens)
    with harness.running_bridge(tmp_path, mesh.plugin.socket, narrow) as bridge:
        harness.bring_to_serving(bridge, mesh.plugin, mesh.root)

        herd = await stampede(bridge, tokens, SIDECARS, SECONDS)
        assert len(herd.seconds) == SIDECARS
        assert not herd.failed

        foreign = dataclasses.replace(harness.token_issuer(), key_id=tokens.key_id)
        refused = await stampede(bridge, foreign, 3, SECONDS)
        assert not refused.seconds
        assert refused.failed == {"UNAUTHENTICATED": 3}
        assert not refused.retried
