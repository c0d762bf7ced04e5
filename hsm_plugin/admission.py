"""Who may ask the token next: a bounded queue, fair between lanes.

A lane is what one client's calls have in common. While there is room every call goes at once.
Beyond that the lanes take turns, each call in its lane's order, so that a flood in one lane
delays the others by one call each. When the queue is full, the longest lane gives way.
"""

import asyncio
from collections import deque

from hsm_plugin.errors import ExpiredError, OverloadedError

_Waiter = asyncio.Future[None]


class Admission:
    """Room for `running_limit` calls at the token and `queue_limit` that wait."""

    def __init__(self, *, running_limit: int, queue_limit: int) -> None:
        self.running_limit = running_limit
        self._queue_limit = queue_limit
        self._running = 0
        self._waiting = 0
        self._lanes: dict[bytes, deque[_Waiter]] = {}

    @property
    def running(self) -> int:
        """Calls at the token now."""
        return self._running

    @property
    def waiting(self) -> int:
        """Calls in the queue now."""
        return self._waiting

    async def enter(self, lane: bytes, deadline: float) -> None:
        """Return when it is this call's turn; `leave` must follow.

        `deadline`: on the event loop's clock. ExpiredError when it passes first,
        OverloadedError when the queue is full.
        """
        if self._running < self.running_limit and not self._waiting:
            self._running += 1
            return
        waiter = self._queue(lane)
        try:
            async with asyncio.timeout_at(deadline):
                await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.leave()  # its turn came in the same moment as its end
            else:
                self._forget(lane, waiter)
            if isinstance(error, TimeoutError):
                raise ExpiredError("the deadline passed before the token was free") from None
            raise

    def leave(self) -> None:
        """Give the turn to the next call."""
        self._running -= 1
        self._admit()

    def resize(self, running_limit: int) -> None:
        """Change how many calls may be at the token at once."""
        self.running_limit = running_limit
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self._running < self.running_limit:
            lane, waiters = next(iter(self._lanes.items()))
            waiter = waiters.popleft()
            del self._lanes[lane]
            if waiters:
                self._lanes[lane] = waiters  # to the end of the round
            self._waiting -= 1
            if not waiter.done():
                self._running += 1
                waiter.set_result(None)

    def _queue(self, lane: bytes) -> _Waiter:
        if self._waiting >= self._queue_limit:
            self._make_room(lane)
        waiter: _Waiter = asyncio.get_running_loop().create_future()
        self._lanes.setdefault(lane, deque()).append(waiter)
        self._waiting += 1
        return waiter

    def _make_room(self, lane: bytes) -> None:
        """Drop the last call of the longest lane; OverloadedError when that is our own."""
        error = OverloadedError(
            f"{self._waiting} calls wait for the token already",
            hint="try again with backoff, or give the plugin more sessions",
        )
        longest = max(self._lanes, key=lambda name: len(self._lanes[name]))
        ours = len(self._lanes.get(lane, ()))
        if len(self._lanes[longest]) <= ours + 1:
            raise error
        last = self._lanes[longest][-1]
        self._forget(longest, last)
        if not last.done():
            last.set_exception(error)

    def _forget(self, lane: bytes, waiter: _Waiter) -> None:
        waiters = self._lanes.get(lane)
        if waiters is None or waiter not in waiters:
            return
        waiters.remove(waiter)
        self._waiting -= 1
        if not waiters:
            del self._lanes[lane]
