"""The token as the server sees it: an async KeyStore in front of a worker that may be replaced.

A call passes the breaker, waits for its turn, and goes to the worker. When the token turns out
to need a new initialisation, or the worker ends, the call waits for the next connection and is
sent once more, if its deadline allows: each operation either changes nothing or is idempotent by
its id. (A destruction that had succeeded unseen is answered with KeyNotFoundError.) The call
that hung is not sent again.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hsm_plugin import worker_codec
from hsm_plugin.admission import Admission, Lane
from hsm_plugin.bound_token import BoundToken
from hsm_plugin.breaker import STABLE_SECONDS, Breaker
from hsm_plugin.errors import HsmUnavailableError, HungCallError
from hsm_plugin.keys import TokenIdentity
from hsm_plugin.signing_pace import SigningPace
from hsm_plugin.wire import ONE_AT_A_TIME, Operation
from hsm_plugin.worker_process import Loss, WorkerProcess, WorkerSettings
from hsm_plugin.worker_snapshot import WorkerSnapshot, decode

_QUEUED_IN_WORKER = 4
"""Requests that lie ready in the worker's socket, so that no thread waits for the server."""

_RECOVERY_SECONDS = 2.0
"""How long a call waits for a module that is being initialised again."""

_RETIRE_POLL_SECONDS = 0.05

_CONNECT_HANGS = 3
_GENERATION_HANGS = 6
"""Multiples of the hang limit: vendors' clients and key generation take their time."""


@dataclass(frozen=True, slots=True)
class Lost:
    """Why the token, or the worker that held it, is gone."""

    loss: Loss
    reason: str


class TokenClient:
    """One worker at a time, and the calls to it. Lives on one event loop."""

    def __init__(
        self,
        settings: WorkerSettings,
        *,
        queue_limit: int,
        hang_seconds: float,
        forget: Callable[[], None] = lambda: None,
    ) -> None:
        """`forget` is called when what the token told before may no longer be used."""
        self._settings = settings
        self._forget = forget
        self._pace = SigningPace(settings.threads)
        self._hang_seconds = hang_seconds
        self._worker: WorkerProcess | None = None
        self._queue_limit = queue_limit
        self._held = 0
        self._tokens = settings.tokens
        self._first = 0
        """Where in the list of tokens the next connect begins."""
        self._connected_at = 0.0
        self.rank = 0
        """The place in the list of the token in use; 0 is the preferred one."""
        self._settled = asyncio.Event()
        self._settled.set()
        self._lost: asyncio.Future[Lost] | None = None
        self._retiring: set[asyncio.Task[None]] = set()
        self.breaker = Breaker(settings.token_label)
        self._generation = Admission(running_limit=1, queue_limit=queue_limit)
        self.admission = Admission(
            running_limit=settings.threads + _QUEUED_IN_WORKER, queue_limit=queue_limit
        )

    # -- for the loop that keeps the token connected -------------------------------------

    @property
    def worker(self) -> WorkerProcess | None:
        """The worker that runs now."""
        return self._worker

    def start_worker(self) -> WorkerProcess:
        """Return the worker, a new one when none runs."""
        if self._worker is None or not self._worker.is_running:
            self._worker = self._new_worker()
        return self._worker

    def _new_worker(self, settings: WorkerSettings | None = None) -> WorkerProcess:
        def on_loss(loss: Loss, reason: str) -> None:
            if self._worker is worker:  # else it was replaced, or never came into use
                self._on_loss(loss, reason)

        try:
            worker = WorkerProcess(settings or self._settings, on_loss)
        except OSError as error:
            raise HsmUnavailableError(
                f"no worker process can be started: {error.strerror}",
                hint="see the limits on memory and processes of this container",
            ) from None
        return worker

    def pause(self, seconds: float) -> None:
        """Tell callers that the token is not tried before so many seconds have passed."""
        self.breaker.open(self.breaker.reason, time.monotonic() + seconds)
        if seconds > _RECOVERY_SECONDS / 2:
            self._settled.set()

    async def load_module(self) -> None:
        """Return when the first worker has loaded the module; ModuleError when it cannot.

        Returns too when the worker crashes or hangs on it: that may pass.
        """
        worker = self.start_worker()
        limit = self._hang_seconds
        with contextlib.suppress(HsmUnavailableError, TimeoutError):
            async with asyncio.timeout(limit):
                await worker.ask(
                    Operation.LOAD_MODULE,
                    [],
                    deadline=time.monotonic() + limit,
                    limit_seconds=limit,
                )

    async def connect(self) -> TokenIdentity:
        """Return the token found and logged in; calls are let through from now on.

        The list's first token comes first, unless its worker hung or ended in the last attempt,
        or the token was lost just after it was found: then the next one does.
        """
        worker = self.start_worker()
        order = [(self._first + step) % self._tokens for step in range(self._tokens)]
        lost: asyncio.Future[Lost] = asyncio.get_running_loop().create_future()
        self._lost = lost
        try:
            identity = await self._log_in(worker, order)
            if not lost.done():
                self.breaker.close()
        except HsmUnavailableError:
            self._first = 0 if worker.is_running else (self._first + 1) % self._tokens
            raise
        finally:
            self._settled.set()
        self._fit(identity)
        return identity

    async def prefer(self) -> TokenIdentity:
        """Return a token that comes before the one in use, after a change over to it.

        HsmUnavailableError when none can be used; the one in use stays.
        """
        return await self.replace(range(self.rank))

    async def replace(self, order: Sequence[int] = ()) -> TokenIdentity:
        """Return the token after a new worker has logged in and taken over from the old one.

        The new one reads every file anew. When it cannot log in, the old one stays.
        `order`: places in the list of tokens; all when empty.
        """
        fresh = self._new_worker()
        try:
            async with asyncio.timeout(_CONNECT_HANGS * self._hang_seconds):
                identity = await self._log_in(fresh, order)
        except TimeoutError:
            await self._discard(fresh)
            raise HsmUnavailableError(
                "the login with the new credentials hung in the PKCS#11 module",
                hint="check the HSM and its client; the connection in use stays",
            ) from None
        except BaseException:
            await self._discard(fresh)
            raise
        old, self._worker = self._worker, fresh
        self._forget()
        self._fit(identity)
        if old is not None:
            task = asyncio.create_task(self._retire(old))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)
        return identity

    async def try_pin(self, pin_file: Path, in_use: Path | None) -> bool:
        """Return whether a login was made with this file's PIN, in a worker that ends at once.

        None is made when `in_use` holds the same PIN. The connection in use is not touched.
        """
        spare = self._new_worker(replace(self._settings, pin_file=pin_file, threads=1))
        try:
            async with asyncio.timeout(_CONNECT_HANGS * self._hang_seconds):
                if in_use is not None and await self._same_pin(spare, pin_file, in_use):
                    return False
                await self._log_in(spare, [] if self.breaker.is_open else [self.rank])
        except TimeoutError:
            spare.kill("its login hung")
            raise HsmUnavailableError(
                "the trial login hung in the PKCS#11 module",
                hint="check the HSM and its client; the connection in use stays",
            ) from None
        except asyncio.CancelledError:
            spare.kill("nobody awaits its login any more")
            raise
        finally:
            await spare.close()
        return True

    async def _same_pin(self, worker: WorkerProcess, first: Path, second: Path) -> bool:
        (same,) = await worker.ask(
            Operation.SAME_PIN,
            [os.fsencode(first), os.fsencode(second)],
            deadline=time.monotonic() + self._hang_seconds,
            limit_seconds=self._hang_seconds,
        )
        return worker_codec.decode_bool(same)

    async def _log_in(self, worker: WorkerProcess, order: Sequence[int] = ()) -> TokenIdentity:
        patience = _CONNECT_HANGS * self._hang_seconds
        fields = await worker.ask(
            Operation.CONNECT,
            worker_codec.encode_order(order),
            deadline=time.monotonic() + patience,
            limit_seconds=patience,
        )
        return worker_codec.decode_identity(fields)

    async def _discard(self, worker: WorkerProcess) -> None:
        worker.kill("its login did not succeed")
        await worker.reap(_RETIRE_POLL_SECONDS)

    async def _retire(self, worker: WorkerProcess) -> None:
        """End a worker that was replaced, after what it was asked."""
        end = time.monotonic() + _GENERATION_HANGS * self._hang_seconds
        try:
            while worker.pending and time.monotonic() < end:  # noqa: ASYNC110 - no event tells it
                await asyncio.sleep(_RETIRE_POLL_SECONDS)
        finally:
            await worker.close()

    def _fit(self, identity: TokenIdentity) -> None:
        """Remember which token it is, and admit as many calls as it has sessions for."""
        self.rank, self._first, self._connected_at = identity.rank, 0, time.monotonic()
        threads = min(self._settings.threads, identity.session_limit)
        spare = _QUEUED_IN_WORKER if threads == self._settings.threads else 0
        self.admission.resize(threads + spare)

    async def probe(self) -> None:
        """Return when the token answers."""
        if self._worker is not None:
            await self._worker.ask(
                Operation.PROBE,
                [],
                deadline=time.monotonic() + self._hang_seconds,
                limit_seconds=self._hang_seconds,
            )

    async def snapshot(self) -> tuple[int, WorkerSnapshot] | None:
        """Return the worker's process id and what it tells of itself; None without a worker."""
        worker = self._worker
        if worker is None or not worker.is_running:
            return None
        (blob,) = await worker.ask(
            Operation.SNAPSHOT,
            [],
            deadline=time.monotonic() + self._hang_seconds,
            limit_seconds=self._hang_seconds,
        )
        return worker.pid, decode(blob)

    async def lost(self) -> Lost:
        """Return when the connection that `connect` made is gone."""
        if self._lost is None:
            return Lost(Loss.TOKEN, "the token was never connected")
        return await asyncio.shield(self._lost)

    def kill_if_hung(self) -> None:
        """End the worker when one of its calls has not returned for too long."""
        if self._worker is None:
            return
        operation = self._worker.overdue(time.monotonic())
        if operation is not None:
            self._worker.kill(f"{operation.name} hung in the PKCS#11 module; a new worker starts")

    async def close(self) -> None:
        """Return when the worker has ended, and those that it replaced."""
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        if self._worker is not None:
            await self._worker.close()

    # -- for the services ----------------------------------------------------------------

    def bound(self, lane: Lane, deadline: float) -> BoundToken:
        """Return the token for one call. `deadline`: on the monotonic clock, in seconds."""
        return BoundToken(self.call, self._pace, lane, deadline)

    async def call(
        self, operation: Operation, fields: Sequence[bytes], lane: Lane, deadline: float
    ) -> list[bytes]:
        """Return the operation's results."""
        if self._recovering:
            await self._recovered(deadline)
        connection = self._lost
        try:
            return await self._call_once(operation, fields, lane, deadline)
        except HungCallError:
            raise
        except HsmUnavailableError:
            if connection is not self._lost or not self._recovering:
                raise
        await self._recovered(deadline)
        return await self._call_once(operation, fields, lane, deadline)

    async def _call_once(
        self, operation: Operation, fields: Sequence[bytes], lane: Lane, deadline: float
    ) -> list[bytes]:
        self._check_breaker()
        alone = operation in ONE_AT_A_TIME
        gates = (self._generation, self.admission) if alone else (self.admission,)
        entered: list[Admission] = []

        def leave() -> None:
            for gate in entered:
                gate.leave()

        try:
            for gate in gates:
                await gate.enter(lane, deadline)
                entered.append(gate)
            worker = self._check_breaker()
            answer = worker.ask(
                operation,
                fields,
                deadline=deadline,
                limit_seconds=self._hang_seconds * (_GENERATION_HANGS if alone else 1),
                done=leave,
            )
        except BaseException:
            leave()
            raise
        try:
            results = await answer
        except HsmUnavailableError as error:
            if not self.breaker.is_open and self.breaker.failed():
                self._on_loss(Loss.HSM, str(error))
            raise
        self.breaker.succeeded()
        return results

    def _check_breaker(self) -> WorkerProcess:
        """Return the worker, or raise what a call gets while there is no use in asking it."""
        if self.breaker.is_open or self._worker is None:
            raise self.breaker.refuse(time.monotonic())
        return self._worker

    async def _recovered(self, deadline: float) -> None:
        """Return when the module is initialised again, or when it is not worth waiting for."""
        if self._held >= self._queue_limit:
            return
        self._held += 1
        try:
            async with asyncio.timeout_at(min(deadline, time.monotonic() + _RECOVERY_SECONDS)):
                await self._settled.wait()
        except TimeoutError:
            return
        finally:
            self._held -= 1

    @property
    def _recovering(self) -> bool:
        return not self._settled.is_set()

    def _on_loss(self, loss: Loss, reason: str) -> None:
        if loss is Loss.HSM:
            self._settled.set()
        elif not self.breaker.is_open:
            self._settled.clear()
        if time.monotonic() - self._connected_at < STABLE_SECONDS:
            self._first = (self.rank + 1) % self._tokens
        self.breaker.open(reason, time.monotonic())
        self._forget()
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(Lost(loss, reason))
