"""Whatever the HSM does, the plugin serves again within seconds, by itself."""

import pytest

from tests.faults.clients import observe, sign
from tests.faults.scenarios import FAULTS, Fault
from tests.support.faults import FaultyHsm
from tests.support.plugin import SERVING, Plugin


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_plugin_recovers_by_itself(plugin: Plugin, hsm: FaultyHsm, fault: Fault) -> None:
    observation, seconds = observe(plugin, hsm, fault)
    assert set(observation.failures) <= fault.seen, (observation, plugin.text())
    assert observation.statuses["OK"]
    assert seconds <= fault.recovers_seconds, (observation, plugin.text())
    plugin.await_health(SERVING)
    with plugin.signing() as stub:
        assert sign(stub)
    assert "Traceback" not in plugin.text()
