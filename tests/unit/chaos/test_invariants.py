"""Each invariant sees the fault that it is there for."""

from chaos.faults import Fault
from chaos.invariants import (
    AUDIT_KEY,
    ended_by_chaos,
    ended_in_order,
    logged_once,
    no_canary,
    no_orphans,
    told_in_events,
)
from chaos.supervisor import Exit


def test_certificates_that_are_logged_once_each_hold_and_more_may_be_logged() -> None:
    assert logged_once(["a", "b", "c"], ["a", "c"]).holds


def test_a_certificate_that_is_in_no_log_is_named() -> None:
    finding = logged_once(["a"], ["a", "b"])
    assert not finding.holds
    assert "b is in no log" in finding.told


def test_a_certificate_that_is_logged_twice_is_named() -> None:
    assert "a is logged 2 times" in logged_once(["a", "a"], ["a"]).told


def test_one_serial_for_two_sidecars_is_named() -> None:
    assert "a was given 2 times" in logged_once(["a"], ["a", "a"]).told


def test_a_run_without_certificates_shows_nothing() -> None:
    assert not logged_once([], []).holds


def test_a_token_with_what_the_mesh_needs_holds() -> None:
    assert no_orphans(["ca", AUDIT_KEY], [AUDIT_KEY, "ca"], 1, "ca").holds


def test_a_key_too_many_does_not_hold() -> None:
    assert not no_orphans(["ca", "ca-2", AUDIT_KEY], ["ca", "ca-2", AUDIT_KEY], 1, "ca").holds
    assert not no_orphans(["ca", AUDIT_KEY], ["ca", AUDIT_KEY], 2, "ca").holds
    assert not no_orphans(["ca", AUDIT_KEY], ["ca", "ca", AUDIT_KEY], 1, "ca").holds
    assert not no_orphans(["ca", "ca", AUDIT_KEY], ["ca", "ca", AUDIT_KEY], 1, "ca").holds


def test_a_key_that_list_keys_does_not_name_does_not_hold() -> None:
    assert not no_orphans(["ca", AUDIT_KEY], ["ca", AUDIT_KEY], 1, "none").holds


def test_a_secret_in_a_log_is_named_and_not_shown() -> None:
    finding = no_canary({"the PIN": "2718281828"}, {"a.log": "well", "b.log": "pin=2718281828"})
    assert not finding.holds
    assert finding.told == "the PIN in b.log"
    assert no_canary({"the PIN": "2718281828"}, {"a.log": "well"}).holds


def test_an_empty_log_shows_nothing() -> None:
    assert not no_canary({"the PIN": "2718281828"}, {"a.log": ""}).holds


def test_an_end_that_nobody_asked_for_is_named() -> None:
    sent, own = Exit("bridge-1", -9, was_sent=True), Exit("plugin", -11, was_sent=False)
    assert ended_by_chaos([sent]).holds
    assert ended_by_chaos([sent, own]).told == "plugin: -11"


def test_an_exit_code_after_sigterm_is_named() -> None:
    assert ended_in_order({"bridge-1": 0}).holds
    assert ended_in_order({"bridge-1": 0, "plugin": 1}).told == "plugin: 1"


def test_a_fault_of_a_secret_that_no_event_tells_is_named() -> None:
    struck = [Fault.CHAIN_SPOILT, Fault.PLUGIN_KILLED]
    assert told_in_events(struck, ["Refused", "Serving"]).holds
    finding = told_in_events(struck, ["Serving"])
    assert not finding.holds
    assert finding.told == f"{Fault.CHAIN_SPOILT.title}: no Refused"
