"""Blocking work on threads of its own, so that the event loop never waits for a token.

Bounded: a call beyond the queue's limit is refused at once, and one whose deadline passes while
it waits never reaches the token.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from hsm_plugin.errors import ExpiredError, OverloadedError

_P = ParamSpec("_P")
_R = TypeVar("_R")


class Executor:
    """`workers` threads and room for `queue_limit` calls that wait or run."""

    def __init__(self, *, workers: int, queue_limit: int) -> None:
        self._pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="token")
        self._queue_limit = queue_limit
        self._queued = 0

    @property
    def queued(self) -> int:
        """Calls that wait or run now."""
        return self._queued

    async def run(
        self,
        deadline: float | None,
        function: Callable[_P, _R],
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> _R:
        """Return what the function returns.

        `deadline`: on the monotonic clock, in seconds. OverloadedError when the queue is full,
        ExpiredError when the deadline passed before the function was started.
        """
        if self._queued >= self._queue_limit:
            raise OverloadedError(
                f"{self._queued} calls wait for the token already",
                hint="try again with backoff, or give the plugin more sessions",
            )

        def guarded() -> _R:
            if deadline is not None and time.monotonic() >= deadline:
                raise ExpiredError("the deadline passed before the token was free")
            return function(*args, **kwargs)

        loop = asyncio.get_running_loop()
        future = self._pool.submit(guarded)
        self._queued += 1
        # Not when the caller leaves: a thread that runs cannot be stopped, and keeps its place.
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._leave))
        return await asyncio.wrap_future(future)

    def _leave(self) -> None:
        self._queued -= 1

    def close(self) -> None:
        """End the threads after the calls that run; those that only wait are dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)
