"""Who may ask the token next: a bounded queue, fair between clients and between their lanes.

While there is room every call goes at once. Beyond that the clients take turns, and the lanes of
one client take turns at its turns, each call in its lane's order: a flood delays the others by
one call each. When the queue is full, the client with most calls in it gives way.
"""

import asyncio
from collections import deque
from typing import NamedTuple

from hsm_plugin.errors import ExpiredError, OverloadedError

_Waiter = asyncio.Future[None]
_Lanes = dict[bytes, deque[_Waiter]]


class Lane(NamedTuple):
    """What calls have in common that wait for each other."""

    key: bytes
    """The key that they name, or what they are about."""
    client: str = ""
    """Who sent them; empty when that is not known."""


class Admission:
    """Room for `running_limit` calls at the token and `queue_limit` that wait."""

    def __init__(self, *, running_limit: int, queue_limit: int) -> None:
        self.running_limit = running_limit
        self.queue_limit = queue_limit
        self._running = 0
        self._waiting = 0
        self._clients: dict[str, _Lanes] = {}

    @property
    def running(self) -> int:
        """Calls at the token now."""
        return self._running

    @property
    def waiting(self) -> int:
        """Calls in the queue now."""
        return self._waiting

    async def enter(self, lane: Lane, deadline: float) -> None:
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
            client, lanes = next(iter(self._clients.items()))
            key, waiters = next(iter(lanes.items()))
            waiter = waiters.popleft()
            del lanes[key], self._clients[client]
            if waiters:
                lanes[key] = waiters  # to the end of the client's round
            if lanes:
                self._clients[client] = lanes  # to the end of the round
            self._waiting -= 1
            if not waiter.done():
                self._running += 1
                waiter.set_result(None)

    def _queue(self, lane: Lane) -> _Waiter:
        if self._waiting >= self.queue_limit:
            self._make_room(lane)
        waiter: _Waiter = asyncio.get_running_loop().create_future()
        self._clients.setdefault(lane.client, {}).setdefault(lane.key, deque()).append(waiter)
        self._waiting += 1
        return waiter

    def _make_room(self, lane: Lane) -> None:
        """Drop the last call of who has most of them; OverloadedError when that is our own."""
        error = OverloadedError(
            f"{self._waiting} calls wait for the token already",
            hint="try again with backoff, or give the plugin more sessions",
        )
        longest = self._longest(lane)
        if longest is None:
            raise error
        last = self._clients[longest.client][longest.key][-1]
        self._forget(longest, last)
        if not last.done():
            last.set_exception(error)

    def _longest(self, lane: Lane) -> Lane | None:
        """Return the lane that has more than its share while this one has less."""
        client = max(self._clients, key=lambda name: _waiting(self._clients[name]))
        ours = self._clients.get(lane.client, {})
        if _waiting(self._clients[client]) > _waiting(ours) + 1:
            lanes = self._clients[client]
            return Lane(max(lanes, key=lambda key: len(lanes[key])), client)
        if not ours:
            return None
        key = max(ours, key=lambda name: len(ours[name]))
        if len(ours[key]) <= len(ours.get(lane.key, ())) + 1:
            return None
        return Lane(key, lane.client)

    def _forget(self, lane: Lane, waiter: _Waiter) -> None:
        lanes = self._clients.get(lane.client, {})
        waiters = lanes.get(lane.key)
        if waiters is None or waiter not in waiters:
            return
        waiters.remove(waiter)
        self._waiting -= 1
        if not waiters:
            del lanes[lane.key]
        if not lanes:
            del self._clients[lane.client]


def _waiting(lanes: _Lanes) -> int:
    return sum(len(waiters) for waiters in lanes.values())
