import json
from dataclasses import replace
from datetime import timedelta

import pytest

from istio_hsm_installer import status
from istio_hsm_installer.custody import CaKey, KeyPlace
from istio_hsm_installer.status import Condition, Facts
from istio_hsm_installer.verification import Point
from tests.support import pki

NOW = pki.MOMENT
ROOT = pki.root(valid_until=NOW + timedelta(days=400))
DONE = Facts(
    is_installed=True,
    pods=[Point("pod istiod-1", is_fine=True, said="3/3")],
    key=CaKey(KeyPlace.RESIDENT, "kek", "ca-1"),
    has_csr=True,
    chain=[ROOT.certificate],
    vault="unsealed",
    is_vault_ready=True,
    injected=["shop"],
)
WAITING = Point("pod istiod-1", is_fine=False, said="2/3", hint="kubectl logs istiod-1")


def test_when_all_is_done_nothing_is_left() -> None:
    assert status.next_step(DONE, NOW).why == "nothing is left to do"


@pytest.mark.parametrize(
    ("change", "why", "command"),
    [
        ({"is_installed": False}, "no istiod", "istio-hsm apply"),
        ({"is_vault_ready": False, "vault": "sealed"}, "Vault: sealed", "istio-hsm check"),
        ({"key": CaKey(KeyPlace.NONE), "pods": [WAITING]}, "no CA key", "kubectl logs istiod-1"),
        ({"chain": (), "has_csr": False}, "the CSR is awaited", "istio-hsm verify"),
        ({"chain": ()}, "waits for the offline root", "ceremony csr fetch"),
        ({"pods": [WAITING]}, "pod istiod-1: 2/3", "kubectl logs istiod-1"),
        ({"injected": ()}, "no namespace is injected", "istio-hsm inject"),
    ],
)
def test_the_first_thing_that_is_missing_is_what_to_do_next(
    change: dict[str, object], why: str, command: str
) -> None:
    facts = replace(DONE, **change)  # type: ignore[arg-type]  # one field at a time
    advice = status.next_step(facts, NOW)
    assert why in advice.why
    assert command in advice.command


def test_a_chain_near_its_end_calls_for_a_ceremony_before_anything_breaks() -> None:
    advice = status.next_step(DONE, NOW + timedelta(days=371))
    assert advice.why.startswith("the chain ends on")
    assert "--replace" in advice.command


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (
            {"status.json": json.dumps({"conditions": [{"type": "A", "status": "True"}]})},
            [Condition("A", "True", "")],
        ),
        (
            {"conditions": json.dumps([{"type": "A", "status": "False", "reason": "R"}])},
            [Condition("A", "False", "R")],
        ),
        ({"phase": "serving"}, [Condition("phase", "serving", "")]),
        ({"broken": "[{"}, [Condition("broken", "[{", "")]),
        ({"odd": "[1]"}, []),
        ({"cert-chain.pem": ROOT.pem.decode()}, []),
        ({}, []),
    ],
)
def test_conditions_are_read_in_whichever_form_they_come(
    values: dict[str, str], found: list[Condition]
) -> None:
    assert status.conditions(values) == found
