"""A trial login costs one C_Login for each wrong value, ever, and none for the PIN in use."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from istio_hsm_proto import control_v1_pb2 as pb
from istio_hsm_proto.control_v1_pb2_grpc import ControlServiceStub
from tests.faults.clients import status_of
from tests.support import plugin as plugins
from tests.support.faults import Ckr, FaultyHsm
from tests.support.plugin import Plugin

Verdict = pb.TrialCredentialsResponse
STAGED = "..2026_01_31_12_00_00.5f3a9c01"


@pytest.fixture
def plugin(hsm: FaultyHsm, tmp_path: Path) -> Iterator[Plugin]:
    """A serving plugin on a token that locks after three wrong PINs."""
    hsm.lock_pin_after(3)
    with plugins.running(hsm.hsm, tmp_path / "run", environment=hsm.environment()) as running:
        yield running


def stage(hsm: FaultyHsm, pin: str) -> None:
    folder = hsm.hsm.pin_file.parent / STAGED
    folder.mkdir(exist_ok=True)
    (folder / hsm.hsm.pin_file.name).write_text(pin)


def trial(plugin: Plugin, generation: str = STAGED) -> pb.TrialCredentialsResponse:
    with plugin.channel() as channel:
        return ControlServiceStub(channel).TrialCredentials(
            pb.TrialCredentialsRequest(generation=generation), timeout=30
        )


def test_a_wrong_pin_costs_one_login_over_many_trials_and_a_restart(
    hsm: FaultyHsm, plugin: Plugin, tmp_path: Path
) -> None:
    stage(hsm, "wrong")
    before = hsm.calls("C_Login")
    first, second = trial(plugin), trial(plugin)
    assert first.verdict == second.verdict == Verdict.REFUSED
    assert "refused the PIN" in first.reason
    assert "refused before" in second.reason
    assert (hsm.calls("C_Login"), hsm.pin_failures) == (before + 1, 1)
    assert plugin.health() == plugins.SERVING

    plugin.kill()
    hsm.hsm.pin_file.unlink()  # so that no right PIN settles what is on record
    again = plugins.start(hsm.hsm, tmp_path / "run", environment=hsm.environment())
    try:
        again.await_event("server.serving", 2)
        assert trial(again).verdict == Verdict.REFUSED
        assert (hsm.calls("C_Login"), hsm.pin_failures) == (before + 1, 1)
    finally:
        again.stop()


def test_the_pin_in_use_costs_no_login(hsm: FaultyHsm, plugin: Plugin) -> None:
    stage(hsm, hsm.hsm.pin)
    before = hsm.calls("C_Login")
    assert trial(plugin).verdict == Verdict.IN_USE
    assert hsm.calls("C_Login") == before


def test_the_final_try_is_not_spent_on_a_trial(hsm: FaultyHsm, plugin: Plugin) -> None:
    hsm.count_wrong_pins(2)
    stage(hsm, "perhaps")
    before = hsm.calls("C_Login")
    answer = trial(plugin)
    assert answer.verdict == Verdict.REFUSED
    assert "would lock the token" in answer.reason
    assert hsm.calls("C_Login") == before


def test_a_token_that_is_away_is_no_verdict(hsm: FaultyHsm, plugin: Plugin) -> None:
    stage(hsm, "another")
    hsm.refuse(Ckr.DEVICE_ERROR, "C_Login")
    with pytest.raises(grpc.RpcError) as caught:
        trial(plugin)
    assert status_of(caught.value).code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("name", ["../outside", "..data/../..x", ""])
def test_a_name_that_leads_elsewhere_is_refused_over_the_wire(
    hsm: FaultyHsm, plugin: Plugin, name: str
) -> None:
    before = hsm.calls("C_Login")
    with pytest.raises(grpc.RpcError) as caught:
        trial(plugin, name)
    assert status_of(caught.value).code() is grpc.StatusCode.INVALID_ARGUMENT
    assert hsm.calls("C_Login") == before


def test_no_worker_of_a_trial_is_left_behind(hsm: FaultyHsm, plugin: Plugin) -> None:
    children = Path(f"/proc/{plugin.pid}/task/{plugin.pid}/children")
    before = children.read_text().split()
    for pin in ("wrong", hsm.hsm.pin):
        stage(hsm, pin)
        trial(plugin)
    assert children.read_text().split() == before
