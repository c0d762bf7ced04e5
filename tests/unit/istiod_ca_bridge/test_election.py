import asyncio
import contextlib
from datetime import UTC, datetime

import pytest

from istiod_ca_bridge.election import Action, Election, LeaseRecord, LeaseTiming
from istiod_ca_bridge.errors import (
    ClusterUnavailableError,
    ForbiddenByClusterError,
    SecretExistsError,
)
from istiod_ca_bridge.leadership import Leadership
from tests.unit.istiod_ca_bridge.doubles import recorded_log

TIMING = LeaseTiming(15.0)


def lease(holder: str, revision: str = "1", duration: float = 15.0) -> LeaseRecord:
    return LeaseRecord(holder, duration, 0, revision)


def test_a_lease_that_is_not_there_is_created_and_a_free_one_acquired() -> None:
    assert Election("a", TIMING).decide(None, 0) is Action.CREATE
    assert Election("a", TIMING).decide(lease(""), 0) is Action.ACQUIRE


def test_another_s_lease_is_over_when_it_did_not_change_for_as_long_as_it_lasts() -> None:
    candidate = Election("a", TIMING)

    assert candidate.decide(lease("b"), 1000.0) is Action.WAIT
    assert candidate.decide(lease("b"), 1014.9) is Action.WAIT
    assert candidate.decide(lease("b"), 1015.0) is Action.ACQUIRE


def test_each_renewal_that_is_seen_starts_the_wait_anew() -> None:
    candidate = Election("a", TIMING)
    candidate.decide(lease("b", "1"), 0)

    assert candidate.decide(lease("b", "2"), 14.0) is Action.WAIT
    assert candidate.decide(lease("b", "2"), 28.0) is Action.WAIT
    assert candidate.decide(lease("b", "2"), 29.0) is Action.ACQUIRE


def test_the_holder_s_own_duration_counts_not_ours() -> None:
    candidate = Election("a", LeaseTiming(3.0))
    candidate.decide(lease("b", duration=60.0), 0)

    assert candidate.decide(lease("b", duration=60.0), 59.0) is Action.WAIT
    assert candidate.decide(lease("b", duration=60.0), 60.0) is Action.ACQUIRE


def test_a_leader_that_could_not_renew_leads_no_more_before_another_may() -> None:
    leader = Election("a", TIMING)
    leader.renewed(100.0)

    assert leader.leads(109.9)
    assert not leader.leads(110.0)
    assert leader.timing.renew_within < leader.timing.duration


def test_a_leader_that_sees_another_s_name_leads_no_more_at_once() -> None:
    leader = Election("a", TIMING)
    leader.renewed(0.0)
    assert leader.decide(lease("a"), 1.0) is Action.RENEW

    leader.decide(lease("b", "2"), 1.0)
    assert not leader.leads(1.0)


class MemoryLease:
    """The API server's part: one lease, optimistic locking."""

    def __init__(self) -> None:
        self.record: LeaseRecord | None = None
        self.error: ClusterUnavailableError | None = None

    async def read(self) -> LeaseRecord | None:
        if self.error:
            raise self.error
        return self.record

    async def write(self, record: LeaseRecord, now: datetime, *, is_new_holder: bool) -> None:
        del now, is_new_holder
        await asyncio.sleep(0)
        if self.error:
            raise self.error
        if record.revision != (self.record.revision if self.record else ""):
            raise SecretExistsError("changed")
        number = int(record.revision or "0") + 1
        self.record = LeaseRecord(record.holder, record.duration, record.transitions, str(number))


class Candidates:
    """Replicas on one lease and one clock that the test moves."""

    def __init__(self, *names: str, duration: float = 0.03) -> None:
        self.lease = MemoryLease()
        self.time = 0.0
        self.log, self.lines = recorded_log()
        self.all = {
            name: Leadership(
                self.lease,
                Election(name, LeaseTiming(duration)),
                lambda: datetime.now(UTC),
                self.log,
                lambda: self.time,
            )
            for name in names
        }
        self.tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, name: str) -> None:
        self.tasks[name] = asyncio.create_task(self.all[name].run())

    async def stop(self, name: str) -> None:
        self.tasks[name].cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.tasks[name]

    def leaders(self) -> list[str]:
        return [name for name, candidate in self.all.items() if candidate.leads()]

    async def until(self, leaders: list[str]) -> None:
        async with asyncio.timeout(5):
            while self.leaders() != leaders:  # noqa: ASYNC110 - it moves by itself
                await asyncio.sleep(0.001)


async def test_of_many_that_start_at_once_exactly_one_leads() -> None:
    candidates = Candidates("a", "b", "c")
    for name in candidates.all:
        candidates.start(name)
    async with asyncio.timeout(5):
        while not candidates.leaders():  # noqa: ASYNC110 - it moves by itself
            await asyncio.sleep(0.001)

    for _ in range(20):
        await asyncio.sleep(0.002)
        assert len(candidates.leaders()) == 1
    for name in candidates.all:
        await candidates.stop(name)


async def test_a_leader_that_stops_hands_over_at_once() -> None:
    candidates = Candidates("a", "b")
    candidates.start("a")
    await candidates.until(["a"])
    candidates.start("b")
    await asyncio.sleep(0.02)

    await candidates.stop("a")

    await candidates.until(["b"])  # the clock has not moved
    await candidates.stop("b")


async def test_a_killed_leader_s_lease_is_taken_when_it_is_over() -> None:
    candidates = Candidates("a", "b")
    candidates.lease.record = lease("killed", duration=0.03)
    candidates.start("b")
    await asyncio.sleep(0.02)
    assert candidates.leaders() == []

    candidates.time = 0.03
    await candidates.until(["b"])
    assert candidates.lease.record is not None
    assert candidates.lease.record.transitions == 1
    await candidates.stop("b")


async def test_while_the_api_server_is_away_the_leader_stops_writing() -> None:
    candidates = Candidates("a")
    candidates.start("a")
    await candidates.until(["a"])
    candidates.lease.error = ClusterUnavailableError("away")
    candidates.time = 0.02
    await candidates.until([])

    candidates.lease.error = None
    await candidates.until(["a"])
    await candidates.stop("a")


async def test_without_the_right_to_a_lease_each_may_write_and_the_log_says_so_once() -> None:
    candidates = Candidates("a", "b")
    candidates.lease.error = ForbiddenByClusterError("403", hint="grant get on leases")
    candidates.start("a")
    candidates.start("b")

    await candidates.until(["a", "b"])
    await asyncio.sleep(0.02)

    assert sum("leader.no_lease" in line for line in candidates.lines) == 2
    for name in candidates.all:
        await candidates.stop(name)


@pytest.mark.parametrize("duration", [3.0, 15.0, 60.0])
def test_a_leader_has_several_tries_before_it_must_give_up(duration: float) -> None:
    timing = LeaseTiming(duration)
    assert timing.retry * 4 < timing.renew_within
