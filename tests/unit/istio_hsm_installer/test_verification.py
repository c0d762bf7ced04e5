from datetime import timedelta
from typing import Any

import pytest

from istio_hsm_installer import verification
from tests.support import pki

NOW = pki.MOMENT
YEAR = timedelta(days=365)
GOOD_LOG = """Loaded P11 PIN from file: /var/run/hsm-credential/pin
Serving on socket: /var/run/hsm-socket/.sock
KEK ID: 7651a4ea-eeb7-4c1f-927b-8c871c2127aa
"""


def pod(*ready: str) -> dict[str, Any]:
    """A pod of two containers and a native sidecar, of which these are ready."""
    return {
        "metadata": {"name": "istiod-1"},
        "spec": {
            "containers": [{"name": "discovery"}, {"name": "vaultclient"}],
            "initContainers": [
                {"name": "hsm-plugin", "restartPolicy": "Always"},
                {"name": "once"},
            ],
        },
        "status": {"containerStatuses": [{"name": name, "ready": True} for name in ready]},
    }


def webhook(bundle: str | None, revision: str = "stable") -> dict[str, Any]:
    return {
        "metadata": {"labels": {"istio.io/rev": revision}},
        "webhooks": [{"clientConfig": {"caBundle": bundle}}],
    }


def test_a_pod_with_all_containers_ready_is_fine() -> None:
    [point] = verification.pods([pod("discovery", "vaultclient", "hsm-plugin")])
    assert (point.is_fine, point.said) == (True, "3/3")


def test_a_pod_that_waits_says_which_container() -> None:
    [point] = verification.pods([pod("vaultclient", "hsm-plugin")])
    assert (point.is_fine, point.said) == (False, "2/3, not ready: discovery")
    assert point.hint == "kubectl logs istiod-1 -c discovery"


def test_no_pod_is_not_fine() -> None:
    assert not verification.pods([])[0].is_fine


def test_the_plugin_s_marks_are_looked_for() -> None:
    assert verification.plugin_log(GOOD_LOG).is_fine
    point = verification.plugin_log(GOOD_LOG.replace("KEK ID:", ""))
    assert not point.is_fine
    assert point.said == "lacks: KEK ID:"


def test_a_chain_shows_its_expiry() -> None:
    root = pki.root(valid_until=NOW + YEAR)
    [point] = verification.chain([root.certificate], NOW)
    assert point.is_fine
    assert point.said.endswith("365 days")


@pytest.mark.parametrize("days", [-1, 29])
def test_a_chain_that_is_about_to_expire_or_has_is_not_fine(days: int) -> None:
    root = pki.root(valid_until=NOW + timedelta(days=30))
    [point] = verification.chain([root.certificate], NOW + timedelta(days=30 - days))
    assert not point.is_fine


def test_the_same_root_everywhere_is_fine_beside_others_in_a_bundle() -> None:
    root, other = pki.root(), pki.root("Old Root")
    pem = root.pem.decode()
    published = [("a", pem), ("b", other.pem.decode() + pem)]
    assert verification.distributed([root.certificate], published).is_fine


def test_a_namespace_with_a_namesake_of_the_root_is_told() -> None:
    root, other = pki.root(), pki.root()
    published = [("a", root.pem.decode()), ("b", other.pem.decode()), ("c", "garbage")]
    point = verification.distributed([root.certificate], published)
    assert (point.is_fine, point.said) == (False, "another root in: b, c")


def test_the_webhook_of_the_revision_needs_its_ca() -> None:
    assert verification.webhooks([webhook("Y2E="), webhook(None, "other")], "stable").is_fine
    assert not verification.webhooks([webhook(None)], "stable").is_fine
    assert not verification.webhooks([webhook("Y2E=", "other")], "stable").is_fine
