"""Runs blocking calls off the event loop, one at a time, each with a deadline."""

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Worker:
    """A call that outlives its deadline keeps later ones waiting, so that no two ever overlap.

    The threads are daemons: a call that hangs for good does not keep the process from ending.
    """

    def __init__(self) -> None:
        self._idle = asyncio.Event()
        self._idle.set()

    async def run(self, call: Callable[[], T], timeout_seconds: float) -> T:
        """Return what the call returns; TimeoutError when that takes too long."""
        async with asyncio.timeout(timeout_seconds):
            while not self._idle.is_set():  # another one that waited may have gone first
                await self._idle.wait()
            self._idle.clear()
            try:
                future = self._start(call)
            except BaseException:
                self._idle.set()  # no thread was started, so none will say that it is done
                raise
            return await future

    def _start(self, call: Callable[[], T]) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def finish(result: T | None, error: BaseException | None) -> None:
            self._idle.set()
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)  # type: ignore[arg-type]  # None only when T is None

        def body() -> None:
            result: T | None = None
            caught: BaseException | None = None
            try:
                result = call()
            except BaseException as error:  # noqa: BLE001 - handed to the awaiting task
                caught = error
            if not loop.is_closed():
                loop.call_soon_threadsafe(finish, result, caught)

        threading.Thread(target=body, daemon=True, name="vault-client-worker").start()
        return future
