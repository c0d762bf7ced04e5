"""A few requests sign at once, more wait in order, and the rest are told when to come again."""

import asyncio
import itertools
import random
import time
from collections.abc import Callable

from istiod_ca_bridge.errors import OverloadedError
from istiod_ca_bridge.metrics import Metrics
from istiod_ca_bridge.schedule import Schedule, Ticket

_SMOOTHING = 0.05
_RETRY_SECONDS = (1.0, 10.0)


class Admission:
    """Places at the CA key, given out by a Schedule."""

    def __init__(
        self,
        places: int,
        waiting: int,
        metrics: Metrics,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._places = places
        self._free = places
        self._schedule = Schedule(waiting)
        self._admitted: dict[int, asyncio.Future[None]] = {}
        self._numbers = itertools.count()
        self._metrics = metrics
        self._monotonic = monotonic
        self._held = 0.0
        """How long a place is held, smoothed."""

        metrics.queue_length.set_function(lambda: len(self._schedule))

    def place(self, namespace: str, deadline: float) -> "_Place":
        """Return what holds a place, waited for in order of deadlines, while it is entered.

        OverloadedError when there is none.
        """
        return _Place(self, namespace, deadline)

    async def take(self, namespace: str, deadline: float) -> float:
        """Return once there is a place, and when that was."""
        if self._free and not self._schedule:
            self._free -= 1
        else:
            await self._wait(Ticket(deadline, next(self._numbers), namespace))
        return self._monotonic()

    def give_back(self, taken: float) -> None:
        """Let the next one have the place that was taken then."""
        self._held += _SMOOTHING * (self._monotonic() - taken - self._held)
        self._release()

    def overloaded(self) -> OverloadedError:
        """Return the refusal: come again once those who wait now will be through."""
        least, most = _RETRY_SECONDS
        wait = min(max(len(self._schedule) * self._held / self._places, least), most)
        return OverloadedError(
            "too many requests wait for a signature; try again later",
            retry_after=wait * random.uniform(0.5, 1.5),  # noqa: S311 - so that not all come at once
        )

    async def _wait(self, ticket: Ticket) -> None:
        giving_way = self._schedule.offer(ticket)
        if giving_way is not None:
            self._metrics.queue_refused.inc()
            if giving_way == ticket:
                raise self.overloaded()
            displaced = self._admitted.pop(giving_way.number)
            if not displaced.done():
                displaced.set_exception(self.overloaded())
        admitted = self._admitted[ticket.number] = asyncio.get_running_loop().create_future()
        began = self._monotonic()
        try:
            await admitted
        except asyncio.CancelledError:
            self._schedule.withdraw(ticket)
            if not admitted.cancelled() and admitted.done() and admitted.exception() is None:
                self._release()  # it was given the place just now
            raise
        finally:
            self._admitted.pop(ticket.number, None)
        self._metrics.queue_seconds.observe(self._monotonic() - began)

    def _release(self) -> None:
        """Hand the place on, or keep it free."""
        while (ticket := self._schedule.take()) is not None:
            admitted = self._admitted.pop(ticket.number)
            if not admitted.done():  # else its call was cancelled just now
                admitted.set_result(None)
                return
        self._free += 1


class _Place:
    """A place at the CA key while it is entered: a class, for that costs less than a generator."""

    __slots__ = ("_admission", "_deadline", "_namespace", "_taken")

    def __init__(self, admission: Admission, namespace: str, deadline: float) -> None:
        self._admission = admission
        self._namespace = namespace
        self._deadline = deadline
        self._taken = 0.0

    async def __aenter__(self) -> None:
        self._taken = await self._admission.take(self._namespace, self._deadline)

    async def __aexit__(self, *_: object) -> None:
        self._admission.give_back(self._taken)
