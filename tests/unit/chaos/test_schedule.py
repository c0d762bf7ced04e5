"""The seed alone decides which faults strike."""

from itertools import islice

import pytest

from chaos.blows import DOINGS
from chaos.faults import Fault
from chaos.schedule import Stroke, schedule

ALL = tuple(Fault)


def strokes(seed: int, count: int = 200) -> list[Stroke]:
    return list(islice(schedule(seed, ALL, 3), count))


@pytest.mark.parametrize("seed", [0, 1, 4711])
def test_the_same_seed_is_the_same_schedule(seed: int) -> None:
    assert strokes(seed) == strokes(seed)


def test_another_seed_is_another_schedule() -> None:
    assert strokes(1) != strokes(2)


def test_every_fault_strikes_once_alone_before_any_strikes_again() -> None:
    first = strokes(1)[: len(ALL)]
    assert all(len(it.blows) == 1 for it in first)
    assert {it.blows[0].fault for it in first} == set(ALL)


def test_later_two_strike_at_once_and_never_the_same_part() -> None:
    pairs = [it for it in strokes(1) if len(it.blows) == 2]
    assert pairs
    for pair in pairs:
        one, other = pair.blows
        assert one.fault.part is not other.fault.part


def test_a_fault_lasts_as_long_as_its_bounds_allow() -> None:
    for blow in (blow for stroke in strokes(3) for blow in stroke.blows):
        assert blow.fault.value.shortest <= blow.seconds <= blow.fault.value.longest
        assert blow.fault.lasts == (blow.seconds > 0)
        assert blow.replica in range(3)


def test_only_the_faults_that_were_asked_for_strike() -> None:
    asked = (Fault.PLUGIN_KILLED, Fault.API_FROZEN)
    found = {blow.fault for stroke in islice(schedule(1, asked, 1), 20) for blow in stroke.blows}
    assert found == set(asked)


def test_every_fault_can_be_done() -> None:
    assert set(DOINGS) == set(Fault)
