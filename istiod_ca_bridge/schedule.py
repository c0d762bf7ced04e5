"""Who signs next: the most urgent of the namespace whose turn it is, and who gives way when full.

Between namespaces that wait, turns are equal, however many requests each has; within one, the
earliest deadline goes first. When all places are taken, the namespace that waits with most gives
way, with what is least urgent.
"""

import bisect
from collections import OrderedDict
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, order=True)
class Ticket:
    """A request that waits; the more urgent one is the smaller."""

    deadline: float
    """When it is too late: the call ends, or the certificate that the caller has."""

    number: int
    """In the order of arrival; each is another's."""

    namespace: str = field(compare=False)


class Schedule:
    """A bounded set of tickets, and the order in which they are taken."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._waiting: OrderedDict[str, list[Ticket]] = OrderedDict()
        """Namespaces in the order of their turns, each with its tickets sorted, never none."""

        self._size = 0

    def __len__(self) -> int:
        return self._size

    def offer(self, ticket: Ticket) -> Ticket | None:
        """Let a ticket wait; return the one that gives way for it, which may be itself."""
        if self._size < self._capacity:
            self._add(ticket)
            return None
        if not self._waiting:
            return ticket
        fullest = max(self._waiting.values(), key=len)
        own = self._waiting.get(ticket.namespace, [])
        if len(fullest) > len(own) + 1:
            giving_way = fullest[-1]
        elif own and ticket < own[-1]:
            giving_way = own[-1]
        else:
            return ticket
        self._add(ticket)
        self.withdraw(giving_way)
        return giving_way

    def take(self) -> Ticket | None:
        """Return the ticket whose turn it is; None when nobody waits."""
        if not self._waiting:
            return None
        namespace, waiting = next(iter(self._waiting.items()))
        ticket = waiting.pop(0)
        self._size -= 1
        if waiting:
            self._waiting.move_to_end(namespace)
        else:
            del self._waiting[namespace]
        return ticket

    def withdraw(self, ticket: Ticket) -> bool:
        """Let a ticket wait no longer; return whether it did."""
        waiting = self._waiting.get(ticket.namespace, [])
        at = bisect.bisect_left(waiting, ticket)
        if at == len(waiting) or waiting[at] != ticket:
            return False
        del waiting[at]
        self._size -= 1
        if not waiting:
            del self._waiting[ticket.namespace]
        return True

    def _add(self, ticket: Ticket) -> None:
        bisect.insort(self._waiting.setdefault(ticket.namespace, []), ticket)
        self._size += 1
