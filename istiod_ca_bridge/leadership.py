"""Keeps one replica the writer: acquires, renews and gives up the lease."""

import asyncio
import time
from collections.abc import Callable
from datetime import datetime
from typing import Protocol

from istiod_ca_bridge.election import Action, Election, LeaseRecord
from istiod_ca_bridge.errors import (
    BridgeError,
    ClusterUnavailableError,
    ForbiddenByClusterError,
    SecretExistsError,
)
from istiod_ca_bridge.log import EventLog


class Lease(Protocol):
    """The one lease that candidates share."""

    async def read(self) -> LeaseRecord | None:
        """Return what it says; None when there is none.

        ForbiddenByClusterError without the right to, ClusterUnavailableError when not known.
        """
        ...

    async def write(self, record: LeaseRecord, now: datetime, *, is_new_holder: bool) -> None:
        """Write over just the record's revision (empty: make it), with `now` as renewTime.

        SecretExistsError when another was first; else as `read`.
        """
        ...


class Leadership:
    """Tells whether this replica may write."""

    def __init__(
        self,
        lease: Lease,
        election: Election,
        clock: Callable[[], datetime],
        log: EventLog,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lease = lease
        self._election = election
        self._clock = clock
        self._log = log
        self._monotonic = monotonic
        self._is_forbidden = False
        self._told: str | None = None

    def leads(self) -> bool:
        """Tell whether this replica may write now.

        Without the right to a lease every replica may: each write then finds that another was
        first, as with one replica that was started twice.
        """
        return self._is_forbidden or self._election.leads(self._monotonic())

    async def run(self) -> None:
        """Take part until cancelled; then give the lease up, so that another need not wait."""
        try:
            while True:
                await self._look()
                self._tell()
                await asyncio.sleep(self._election.timing.retry)
        finally:
            await self._release()

    async def _look(self) -> None:
        try:
            record = await self._lease.read()
            began = self._monotonic()
            action = self._election.decide(record, began)
            if action is not Action.WAIT:
                await self._write(record, action)
                self._election.renewed(began)
            self._is_forbidden = False
        except SecretExistsError:
            self._election.lost()
        except ForbiddenByClusterError as error:
            if not self._is_forbidden:
                self._is_forbidden = True
                self._log.warning("leader.no_lease", reason=str(error), hint=error.hint)
        except ClusterUnavailableError as error:
            self._log.debug("leader.not_renewed", reason=str(error))

    async def _write(self, record: LeaseRecord | None, action: Action) -> None:
        transitions = record.transitions if record else 0
        is_new = action is not Action.RENEW
        mine = LeaseRecord(
            holder=self._election.identity,
            duration=self._election.timing.duration,
            transitions=transitions + 1 if record and is_new else transitions,
            revision=record.revision if record else "",
        )
        await self._lease.write(mine, self._clock(), is_new_holder=is_new)

    async def _release(self) -> None:
        if not self._election.leads(self._monotonic()):
            return
        self._election.lost()
        try:
            record = await self._lease.read()
            if record is not None and record.holder == self._election.identity:
                free = LeaseRecord("", 1.0, record.transitions, record.revision)
                await self._lease.write(free, self._clock(), is_new_holder=False)
        except BridgeError as error:
            self._log.debug("leader.not_released", reason=str(error))

    def _tell(self) -> None:
        state = "leading" if self.leads() else "following"
        if state != self._told:
            self._told = state
            self._log.info(f"leader.{state}", identity=self._election.identity)
