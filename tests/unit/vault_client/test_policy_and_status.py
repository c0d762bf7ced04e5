"""What becomes of the set, and what is said of it."""

from datetime import UTC, datetime

import pytest

from vault_client.delivery import Published
from vault_client.errors import (
    Cause,
    DeletedError,
    DeliveryError,
    ForbiddenError,
    SealedError,
)
from vault_client.policy import Action, Outage, Policy
from vault_client.status import State, Status

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
IN_PLACE = Published("..2026", 3, NOW)


def test_to_keep_is_to_keep_for_ever() -> None:
    assert Policy().action(1e12) is Action.KEEP
    assert Policy().due_in(1e12) == float("inf")


def test_to_wipe_is_to_wipe_at_once() -> None:
    assert Policy(0).action(0) is Action.WIPE


def test_a_grace_ends_when_it_is_over_and_not_before() -> None:
    policy = Policy(900)
    assert policy.action(899) is Action.KEEP
    assert policy.due_in(899) == 1
    assert policy.action(900) is Action.WIPE


def test_each_cause_lasts_from_when_it_was_first_seen() -> None:
    outage = Outage()
    assert outage.record(Cause.DELETED, 100) == 0
    assert outage.record(Cause.SEALED, 150) == 0
    assert outage.record(Cause.DELETED, 160) == 60
    assert outage.failures == 3


def test_there_is_one_error_for_each_cause() -> None:
    kinds = {kind.cause for kind in DeliveryError.__subclasses__()}
    assert kinds == set(Cause)


def test_a_fresh_process_is_starting_and_has_nothing_in_place() -> None:
    assert Status().state is State.STARTING
    assert not Status().in_place


def test_a_failure_before_the_first_set_leaves_it_starting_with_a_cause() -> None:
    status = Status().failed(SealedError("sealed", hint="unseal"), None)
    assert (status.state, status.cause, status.in_place) == (State.STARTING, Cause.SEALED, False)


def test_a_failure_with_a_set_in_place_degrades() -> None:
    status = Status().delivered(IN_PLACE, {}, NOW).failed(SealedError("sealed"), IN_PLACE)
    assert (status.state, status.in_place) == (State.DEGRADED, True)
    assert status.last_success == NOW


def test_a_set_left_by_an_earlier_process_counts_as_in_place() -> None:
    assert Status().failed(SealedError("sealed"), IN_PLACE).state is State.DEGRADED


def test_a_wiped_set_stays_revoked_until_a_new_one_arrives() -> None:
    status = Status().delivered(IN_PLACE, {}, NOW).failed(DeletedError("deleted"), IN_PLACE)
    revoked = status.revoked()
    assert (revoked.state, revoked.cause, revoked.in_place) == (State.REVOKED, Cause.DELETED, False)
    assert revoked.failed(SealedError("sealed"), None).state is State.REVOKED
    assert revoked.delivered(IN_PLACE, {}, NOW).state is State.READY


def test_a_delivery_clears_every_cause() -> None:
    failed = Status().failed(ForbiddenError("no", hint="yes", reason="role"), None)
    fields = failed.delivered(IN_PLACE, {}, NOW).as_fields()
    assert [fields[name] for name in ("cause", "reason", "message", "hint")] == [None] * 4
    assert (fields["state"], fields["kv_version"]) == ("ready", 3)


@pytest.mark.parametrize("state", State)
def test_only_ready_and_degraded_have_a_set_in_place(state: State) -> None:
    assert Status(state=state).in_place is (state in {State.READY, State.DEGRADED})
