"""Keeps the worker processes of one bridge: starts them, asks how they are, and ends them.

It binds CA_LISTEN and never accepts: each worker does, once it serves. It answers HEALTH_LISTEN and
METRICS_LISTEN for all of them.
"""

import asyncio
import contextlib
import signal
import socket
from dataclasses import dataclass

from istiod_ca_bridge.config import Config
from istiod_ca_bridge.connection_shares import ConnectionShares, make_shares
from istiod_ca_bridge.errors import BridgeError, ConfigError
from istiod_ca_bridge.grpc_servers import health_server
from istiod_ca_bridge.log import EventLog
from istiod_ca_bridge.metrics_endpoint import metrics_endpoint
from istiod_ca_bridge.metrics_pool import PoolMetrics
from istiod_ca_bridge.pool_health import PoolHealth
from istiod_ca_bridge.tls_front import bind
from istiod_ca_bridge.worker_figures import merged
from istiod_ca_bridge.worker_handle import Launch, WorkerHandle, launch
from istiod_ca_bridge.worker_messages import Ended

_LOOK_SECONDS = 0.2
_SILENT_SECONDS = 10.0
"""A worker that tells nothing for so long is not counted on,"""
_STUCK_SECONDS = 60.0
"""and after so long it is ended."""

_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 30.0
_LIVED_LONG_SECONDS = 60.0
"""Who lived so long is started again after the first pause."""

_MORE_TO_END_SECONDS = 8.0
"""A worker signs the end of its issuance log after it has drained."""


@dataclass(slots=True)
class _Listening:
    """What every worker inherits."""

    listener: socket.socket
    shares: int


class WorkerPool:
    """The workers by their numbers."""

    def __init__(self, config: Config, log: EventLog, launcher: Launch = launch) -> None:
        self._config = config
        self._log = log
        self._launch = launcher
        self._metrics = PoolMetrics(config.workers)
        self.health = PoolHealth()
        self._handles: dict[int, WorkerHandle] = {}
        self._told: tuple[int, ...] | None = None
        self._stopping = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Keep them until `stop` is set and all have drained.

        Raises the BridgeError that a worker ended with, for another would end the same way.
        """
        config = self._config
        listener = bind(config.listen.host, config.listen.port)
        shared = _Listening(listener, make_shares(config.workers))
        await self.health.publish(serving=False)
        async with (
            health_server(self.health.servicer, config.health_listen),
            metrics_endpoint(config.metrics_listen, self.exposition),
        ):
            self._log.info("workers.started", workers=config.workers, address=str(config.listen))
            keepers = [
                asyncio.create_task(self._keep(number, shared))
                for number in range(1, config.workers + 1)
            ]
            watch = asyncio.create_task(self._watch())
            asked = asyncio.create_task(stop.wait())
            try:
                await asyncio.wait([asked, watch, *keepers], return_when=asyncio.FIRST_COMPLETED)
            finally:
                self._stopping.set()
                asked.cancel()
                watch.cancel()
                await self.health.leave()
                listener.close()
                await self._end(keepers)
            await asyncio.wait([watch])
            for task in (*keepers, watch):
                if not task.cancelled() and (error := task.exception()) is not None:
                    raise error
        self._log.info("workers.stopped")

    async def exposition(self) -> bytes:
        """Return the figures of all that answer, and of this process."""
        handles = dict(sorted(self._handles.items()))
        texts = await asyncio.gather(*(handle.figures() for handle in handles.values()))
        answers = {str(number): text for number, text in zip(handles, texts, strict=True) if text}
        answers["bridge"] = self._metrics.process()
        return merged(self._metrics.exposition(), answers).encode()

    async def _keep(self, number: int, shared: _Listening) -> None:
        """Have this worker run until the bridge stops."""
        shares = ConnectionShares(shared.shares, self._config.workers)
        pause = _FIRST_PAUSE_SECONDS
        while not self._stopping.is_set():
            began = asyncio.get_running_loop().time()
            ended, how = await self._once(number, shared)
            shares.is_gone(number)
            if ended is not None:
                raise _error_of(ended)
            if self._stopping.is_set():
                return
            if asyncio.get_running_loop().time() - began >= _LIVED_LONG_SECONDS:
                pause = _FIRST_PAUSE_SECONDS
            self._metrics.restarted(number)
            self._log.error("worker.ended", number=number, how=how, again_in_seconds=pause)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stopping.wait()
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def _once(self, number: int, shared: _Listening) -> tuple[Ended | None, str]:
        """Run a worker once; return why no other should be started, and how it ended."""
        try:
            handle = await self._launch(
                number, self._config.workers, shared.listener.fileno(), shared.shares
            )
        except OSError as error:
            return None, f"it could not be started: {error.strerror}"
        self._handles[number] = handle
        if self._stopping.is_set():  # while it was being started
            handle.send(signal.SIGTERM)
        try:
            return await handle.follow()
        finally:
            del self._handles[number]

    async def _watch(self) -> None:
        """Publish whether any of them could sign, and end those that are stuck."""
        while True:
            serving = []
            for number in range(1, self._config.workers + 1):
                handle = self._handles.get(number)
                serves = handle is not None and handle.serves(_SILENT_SECONDS)
                self._metrics.serves(number, serving=serves)
                serving += [number] * serves
                if handle is not None and handle.silent_seconds >= _STUCK_SECONDS:
                    self._log.error("worker.stuck", number=number, seconds=_STUCK_SECONDS)
                    handle.send(signal.SIGKILL)
            if tuple(serving) != self._told:
                self._told = tuple(serving)
                await self.health.publish(serving=bool(serving))
                tell = self._log.info if len(serving) == self._config.workers else self._log.warning
                tell("workers.serving", serving=len(serving), of=self._config.workers)
            await asyncio.sleep(_LOOK_SECONDS)

    async def _end(self, keepers: list[asyncio.Task[None]]) -> None:
        """Ask all to drain, and kill who takes longer than that may take."""
        config = self._config
        seconds = (config.drain_delay + config.drain).total_seconds() + _MORE_TO_END_SECONDS
        self._signal(signal.SIGTERM)
        _, late = await asyncio.wait(keepers, timeout=seconds)
        if late:
            self._log.error("workers.killed", numbers=",".join(map(str, self._handles)))
            self._signal(signal.SIGKILL)
            await asyncio.wait(keepers)

    def _signal(self, number: signal.Signals) -> None:
        for handle in self._handles.values():
            handle.send(number)


def _error_of(ended: Ended) -> BridgeError:
    kind = ConfigError if ended.is_config else BridgeError
    return kind(ended.error, hint=ended.hint)
