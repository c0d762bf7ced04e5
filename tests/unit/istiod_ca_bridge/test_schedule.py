from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from istiod_ca_bridge.schedule import Schedule, Ticket

_CAPACITY = 6
_NAMESPACES = st.sampled_from("abc")
_DEADLINES = st.floats(0, 100)


def offered(*requests: tuple[str, float], capacity: int = 1000) -> Schedule:
    schedule = Schedule(capacity)
    for number, (namespace, deadline) in enumerate(requests):
        schedule.offer(Ticket(deadline, number, namespace))
    return schedule


def taken(schedule: Schedule) -> list[Ticket]:
    return list(iter(schedule.take, None))


@given(st.lists(st.tuples(_NAMESPACES, _DEADLINES)))
def test_within_a_namespace_the_earliest_deadline_goes_first(
    requests: list[tuple[str, float]],
) -> None:
    order = taken(offered(*requests))

    assert len(order) == len(requests)
    for namespace in "abc":
        own = [ticket for ticket in order if ticket.namespace == namespace]
        assert own == sorted(own)


@given(st.lists(st.tuples(_NAMESPACES, _DEADLINES), min_size=1))
def test_namespaces_that_wait_have_equal_turns(requests: list[tuple[str, float]]) -> None:
    waiting = Counter(namespace for namespace, _ in requests)
    had: Counter[str] = Counter()
    for ticket in taken(offered(*requests)):
        had[ticket.namespace] += 1
        still = [name for name in waiting if had[name] < waiting[name]]
        for name in still:
            assert had[ticket.namespace] - had[name] <= 1


def test_a_namespace_that_comes_again_at_once_does_not_overtake_those_that_wait() -> None:
    schedule = offered(*[("herd", 1.0)] * 3)
    order = []
    for number in range(100, 103):
        schedule.offer(Ticket(0.0, number, "eager"))
        ticket = schedule.take()
        assert ticket is not None
        order.append(ticket.namespace)

    assert Counter(order)["herd"] >= 1


def test_a_full_schedule_makes_room_for_a_namespace_that_has_less_and_for_what_is_urgent() -> None:
    schedule = offered(("herd", 3.0), ("herd", 1.0), ("herd", 2.0), capacity=3)

    assert schedule.offer(Ticket(9.0, 10, "other")) == Ticket(3.0, 0, "herd")
    assert schedule.offer(Ticket(9.0, 11, "herd")) == Ticket(9.0, 11, "herd")
    assert schedule.offer(Ticket(0.5, 12, "herd")) == Ticket(2.0, 2, "herd")
    assert len(schedule) == 3


def test_a_schedule_without_room_lets_nobody_wait() -> None:
    ticket = Ticket(1.0, 1, "a")

    assert Schedule(0).offer(ticket) == ticket


class Waiting(RuleBasedStateMachine):
    """Whatever happens, each ticket waits, was taken, gave way or was withdrawn: once."""

    tickets = Bundle("tickets")

    def __init__(self) -> None:
        super().__init__()
        self.schedule = Schedule(_CAPACITY)
        self.waiting: set[Ticket] = set()
        self.number = 0

    @rule(target=tickets, namespace=_NAMESPACES, deadline=_DEADLINES)
    def offer(self, namespace: str, deadline: float) -> Ticket:
        self.number += 1
        ticket = Ticket(deadline, self.number, namespace)
        gave_way = self.schedule.offer(ticket)
        assert (gave_way is None) == (len(self.waiting) < _CAPACITY)
        self.waiting.add(ticket)
        if gave_way is not None:
            self.waiting.remove(gave_way)
        return ticket

    @rule()
    def take(self) -> None:
        ticket = self.schedule.take()
        assert (ticket is None) == (not self.waiting)
        if ticket is not None:
            self.waiting.remove(ticket)

    @rule(ticket=tickets)
    def withdraw(self, ticket: Ticket) -> None:
        assert self.schedule.withdraw(ticket) == (ticket in self.waiting)
        self.waiting.discard(ticket)

    @invariant()
    def no_more_wait_than_there_is_room_for(self) -> None:
        assert len(self.schedule) == len(self.waiting) <= _CAPACITY

    def teardown(self) -> None:
        assert set(taken(self.schedule)) == self.waiting


TestWaiting = Waiting.TestCase
