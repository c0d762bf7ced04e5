"""Workers that accept from one socket, as tasks of one process."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from istiod_ca_bridge.connection_shares import ConnectionShares, SharedAccept, make_shares


@dataclass(eq=False, slots=True)
class Worker:
    """One that keeps all that it accepts."""

    turns: SharedAccept
    listener: socket.socket
    open: list[socket.socket] = field(default_factory=list)

    async def run(self) -> None:
        while True:
            self.open.append(await self.turns.accept(self.listener, lambda: len(self.open)))


@dataclass(slots=True)
class Crowd:
    """Two workers, and clients that connect to their address."""

    workers: list[Worker]
    shares: ConnectionShares
    address: tuple[str, int]
    clients: list[socket.socket] = field(default_factory=list)

    def counts(self) -> list[int]:
        return [len(worker.open) for worker in self.workers]

    async def connect(self, count: int) -> None:
        """Connect at once, and wait until all are accepted."""
        awaited = sum(self.counts()) + count
        self.clients += [socket.create_connection(self.address) for _ in range(count)]
        async with asyncio.timeout(10):
            while sum(self.counts()) < awaited:  # noqa: ASYNC110 - the workers tell nobody
                await asyncio.sleep(0.001)


@pytest.fixture
async def crowd() -> AsyncIterator[Crowd]:
    descriptor = make_shares(2)
    with contextlib.ExitStack() as ending:
        bound = ending.enter_context(socket.create_server(("127.0.0.1", 0), backlog=128))
        workers = [
            Worker(
                SharedAccept(ConnectionShares(os.dup(descriptor), 2), number),
                ending.enter_context(bound.dup()),
            )
            for number in (1, 2)
        ]
        for worker in workers:
            worker.listener.settimeout(0)
        found = Crowd(workers, ConnectionShares(descriptor, 2), bound.getsockname()[:2])
        yield found
        for it in (*found.clients, *(it for worker in workers for it in worker.open)):
            it.close()


@contextlib.asynccontextmanager
async def at_work(*workers: Worker) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(worker.run()) for worker in workers]
    await asyncio.sleep(0)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


@pytest.mark.parametrize("count", [8, 64])
async def test_a_burst_of_connections_is_shared_evenly(crowd: Crowd, count: int) -> None:
    async with at_work(*crowd.workers):
        await crowd.connect(count)

        assert crowd.counts() == [count // 2, count // 2]


async def test_connections_that_come_one_by_one_are_shared_evenly(crowd: Crowd) -> None:
    async with at_work(*crowd.workers):
        for _ in range(8):
            await crowd.connect(1)

        assert crowd.counts() == [4, 4]


async def test_one_that_does_not_run_yet_holds_nobody_up(crowd: Crowd) -> None:
    async with at_work(crowd.workers[0]):
        await crowd.connect(8)

    assert crowd.counts() == [8, 0]


async def test_one_that_is_stuck_is_waited_for_a_moment_only(crowd: Crowd) -> None:
    crowd.shares.tell(2, 0)  # and it never accepts
    async with at_work(crowd.workers[0]):
        await crowd.connect(8)

    assert crowd.counts() == [8, 0]


async def test_one_that_came_later_is_filled_up_first(crowd: Crowd) -> None:
    async with at_work(crowd.workers[0]):
        await crowd.connect(6)
        async with at_work(crowd.workers[1]):
            await crowd.connect(6)

    assert crowd.counts() == [6, 6]


async def test_who_does_not_serve_leaves_them_to_who_does_and_takes_them_when_nobody_does(
    crowd: Crowd,
) -> None:
    crowd.workers[0].turns.serves = lambda: False
    async with at_work(*crowd.workers):
        await crowd.connect(8)
        assert crowd.counts() == [0, 8]

        crowd.workers[1].turns.serves = lambda: False
        await crowd.connect(8)
        assert sum(crowd.counts()) == 16
