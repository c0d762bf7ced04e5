"""A few requests sign at once, more wait in order, and the rest are told when to come again."""

import asyncio
import contextlib
import itertools
import random
import time
from collections.abc import AsyncIterator, Callable

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

    @contextlib.asynccontextmanager
    async def place(self, namespace: str, deadline: float) -> AsyncIterator[None]:
        """Hold a place, waited for in order of deadlines; OverloadedError when there is none."""
        if self._free and not self._schedule:
            self._free -= 1
        else:
            await self._wait(Ticket(deadline, next(self._numbers), namespace))
        began = self._monotonic()
        try:
            yield
        finally:
            self._held += _SMOOTHING * (self._monotonic() - began - self._held)
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
