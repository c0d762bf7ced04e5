"""A wrong PIN costs one C_Login, ever; the last try is never spent; a lock is told."""

from pathlib import Path

import grpc
import pytest

from tests.faults.clients import make_key, status_of
from tests.support import plugin as plugins
from tests.support.faults import Ckr, FaultyHsm
from tests.support.plugin import SERVING, Plugin


def write_pin(hsm: FaultyHsm, pin: str) -> None:
    other = hsm.hsm.pin_file.with_name("pin.new")
    other.write_text(pin)
    other.replace(hsm.hsm.pin_file)


def start(hsm: FaultyHsm, folder: Path) -> Plugin:
    return plugins.start(hsm.hsm, folder / "run", environment=hsm.environment())


def refusal(plugin: Plugin) -> str:
    """Return what a client is told."""
    with plugin.signing() as stub, pytest.raises(grpc.RpcError) as caught:
        make_key(stub)
    call = status_of(caught.value)
    assert call.code() is grpc.StatusCode.UNAVAILABLE
    return call.details() or ""


def test_a_wrong_pin_costs_one_login_over_three_restarts(hsm: FaultyHsm, tmp_path: Path) -> None:
    hsm.lock_pin_after(3)
    write_pin(hsm, "wrong")
    for count in range(1, 5):
        plugin = start(hsm, tmp_path)
        plugin.await_event("token.unavailable", count)
        plugin.stop()
    assert hsm.calls("C_Login") == 1
    assert hsm.pin_failures == 1


def test_a_wrong_pin_survives_a_kill_and_the_right_one_needs_no_restart(
    hsm: FaultyHsm, tmp_path: Path
) -> None:
    hsm.lock_pin_after(3)
    write_pin(hsm, "wrong")
    first = start(hsm, tmp_path)
    first.await_event("token.unavailable")
    first.kill()
    second = start(hsm, tmp_path)
    second.await_event("token.unavailable", 2)
    assert hsm.calls("C_Login") == 1
    write_pin(hsm, hsm.hsm.pin)
    second.await_health(SERVING)
    assert hsm.calls("C_Login") == 2
    assert hsm.pin_failures == 0
    second.stop()


def test_the_final_try_is_never_spent(hsm: FaultyHsm, tmp_path: Path) -> None:
    hsm.lock_pin_after(3)
    hsm.count_wrong_pins(2)
    plugin = start(hsm, tmp_path)
    plugin.await_event("token.unavailable")
    assert "one wrong PIN more would lock the token" in refusal(plugin)
    plugin.stop()
    assert hsm.calls("C_Login") == 0


def test_a_locked_pin_is_told_and_not_tried(hsm: FaultyHsm, tmp_path: Path) -> None:
    hsm.lock_pin_after(3)
    hsm.count_wrong_pins(3)
    plugin = start(hsm, tmp_path)
    plugin.await_event("token.unavailable")
    assert "the token's user PIN is locked" in refusal(plugin)
    plugin.stop()
    assert hsm.calls("C_Login") == 0


def test_a_login_without_an_answer_is_not_repeated_once_the_token_counts(
    hsm: FaultyHsm, tmp_path: Path
) -> None:
    hsm.lock_pin_after(5)
    hsm.refuse(Ckr.DEVICE_ERROR, "C_Login")
    plugin = start(hsm, tmp_path)
    plugin.await_event("token.unavailable")
    hsm.count_wrong_pins(1)
    plugin.wait_until(lambda: "not tried again" in plugin.text(), "the guard's refusal")
    before = hsm.calls("C_Login")
    plugin.stop()
    again = start(hsm, tmp_path)
    again.await_event("token.unavailable", len(again.events("token.unavailable")) + 1)
    again.stop()
    assert hsm.calls("C_Login") == before
