"""Every certificate is on the disk, in a chain of digests, before it leaves.

What arrives while a group is being synced makes up the next one, so a sync is paid for by many.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from istiod_ca_bridge.errors import BridgeError, IssuanceLogError
from istiod_ca_bridge.issuance_chain import (
    Facts,
    Kind,
    checkpoint_facts,
    checkpoint_message,
)
from istiod_ca_bridge.issuance_file import IssuanceFile
from istiod_ca_bridge.log import EventLog
from istiod_ca_bridge.metrics import Metrics
from istiod_ca_bridge.signer import Signer

T = TypeVar("T")

_LARGEST_GROUP = 1024
_LAST_CHECKPOINT_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class IssuanceLogSettings:
    """Where the log is, and what it does when it cannot be written."""

    path: Path
    max_bytes: int
    checkpoint_every: int
    """Certificates between two signatures by the CA key."""

    issue_without: bool
    """Whether certificates leave while nothing can be written."""


class IssuanceLog:
    """Writes what was issued, in groups, on a thread of its own."""

    def __init__(
        self,
        settings: IssuanceLogSettings,
        file: IssuanceFile,
        signer: Callable[[], Signer | None],
        log: EventLog,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._file = file
        self._signer = signer
        self._log = log
        self._metrics = metrics
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="issuance-log")
        self._pending: list[tuple[Facts, asyncio.Future[None]]] = []
        self._arrived = asyncio.Event()
        self._since_checkpoint = 0
        self._left_unlogged = 0
        self._is_broken = False

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep the log; ConfigError or IssuanceLogError when it cannot be begun."""
        await self._on_thread(self._file.lock)
        try:
            dropped = await self._on_thread(self._file.open)
            if dropped:
                self._log.warning("issuance_log.recovered", dropped_bytes=dropped)
            self._log.info("issuance_log.opened", seq=self._file.at.seq)
            task = asyncio.create_task(self._write_groups())
            try:
                yield
            finally:
                task.cancel()
                await asyncio.wait([task])
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LAST_CHECKPOINT_SECONDS):
                        await self._checkpoint()
        finally:
            await self._on_thread(self._file.close)
            self._thread.shutdown()

    async def record(self, facts: Facts) -> None:
        """Return once the certificate is on the disk; IssuanceLogError when it must not leave."""
        done = asyncio.get_running_loop().create_future()
        self._pending.append((facts, done))
        self._arrived.set()
        try:
            await done
        except IssuanceLogError:
            if not self._settings.issue_without:
                raise
            self._left_unlogged += 1

    async def _write_groups(self) -> None:
        while True:
            await self._arrived.wait()
            group = self._pending[:_LARGEST_GROUP]
            del self._pending[:_LARGEST_GROUP]
            if not self._pending:
                self._arrived.clear()
            if group:
                await self._commit(group)
            if self._since_checkpoint >= self._settings.checkpoint_every:
                await self._checkpoint()

    async def _commit(self, group: list[tuple[Facts, asyncio.Future[None]]]) -> None:
        unlogged = self._left_unlogged
        entries: list[tuple[Kind, Facts]] = [(Kind.ISSUED, facts) for facts, _ in group]
        if unlogged:
            entries.insert(0, (Kind.GAP, {"certificates": unlogged}))
        began = time.perf_counter()
        failure: IssuanceLogError | None = None
        try:
            await self._on_thread(lambda: self._file.append(entries))
        except IssuanceLogError as error:
            failure = error
            self._metrics.log_failures.inc()
        else:
            self._metrics.log_seconds.observe(time.perf_counter() - began)
            self._metrics.logged.inc(len(group))
            self._left_unlogged -= unlogged
            self._since_checkpoint += len(group)
        self._tell(failure)
        for _, done in group:
            if done.done():
                continue
            if failure is None:
                done.set_result(None)
            else:
                done.set_exception(failure)

    async def _checkpoint(self) -> None:
        """Have the CA key vouch for what is written; without it, the next time."""
        signer = self._signer()
        if signer is None or not self._since_checkpoint:
            return
        at, covered = self._file.at, self._since_checkpoint
        try:
            signature = await signer.sign(checkpoint_message(at))
            facts = checkpoint_facts(at, signer.public_key, signature)
            await self._on_thread(lambda: self._file.append([(Kind.CHECKPOINT, facts)]))
        except BridgeError as error:
            self._log.warning("issuance_log.checkpoint_delayed", reason=str(error))
            return
        self._since_checkpoint -= covered

    def _tell(self, failure: IssuanceLogError | None) -> None:
        if failure is not None and not self._is_broken:
            self._log.error("issuance_log.not_written", reason=str(failure), hint=failure.hint)
        elif failure is None and self._is_broken:
            self._log.info("issuance_log.written_again", seq=self._file.at.seq)
        self._is_broken = failure is not None

    async def _on_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)


def issuance_log(
    settings: IssuanceLogSettings,
    signer: Callable[[], Signer | None],
    clock: Callable[[], datetime],
    log: EventLog,
    metrics: Metrics,
) -> IssuanceLog:
    """Return the log that the settings ask for; `signer` is the CA key once there is one."""
    file = IssuanceFile(settings.path, settings.max_bytes, clock)
    return IssuanceLog(settings, file, signer, log, metrics)
