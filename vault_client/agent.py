"""The loop: fetch, verify, publish, wait; and what to do when one of them fails."""

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial

from vault_client.consumer import CredentialConsumer
from vault_client.delivery import FileNames, Published, SecretSet
from vault_client.errors import Cause, DeadlineError, DeliveryError, InternalError
from vault_client.files import Publisher
from vault_client.lease import Backoff, poll_wait
from vault_client.logs import Log
from vault_client.metrics import Metrics
from vault_client.policy import Action, Outage, Policy
from vault_client.session import VaultSession
from vault_client.status import State, Status
from vault_client.threads import Worker
from vault_client.trial import TrialLogin
from vault_client.verify import verify

_REPEAT_WARNING_SECONDS = 600.0
_LONGEST_ATTEMPT_SECONDS = 60.0
_SHORTEST_WAIT_SECONDS = 0.02
_LONGEST_FAREWELL_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Rules:
    """How the loop behaves, as configured."""

    names: FileNames
    policies: Mapping[Cause, Policy]
    poll_seconds: float
    wipe_on_exit: bool


class Agent:
    """Keeps one set of secrets fresh; one attempt at a time, on a thread of its own."""

    def __init__(
        self,
        *,
        session: VaultSession,
        publisher: Publisher,
        consumer: CredentialConsumer | None,
        trial: TrialLogin | None,
        rules: Rules,
        log: Log,
        metrics: Metrics,
        backoff: Backoff,
    ) -> None:
        self._session = session
        self._publisher = publisher
        self._consumer = consumer
        self._trial = trial
        self._rules = rules
        self._log = log
        self._metrics = metrics
        self._backoff = backoff
        self._outage = Outage()
        self._worker = Worker()
        self._beat_due = time.monotonic() + 2 * _LONGEST_ATTEMPT_SECONDS
        self._retry_at = float("-inf")
        self._last_error: DeliveryError | None = None
        self.status = Status()
        metrics.observe(self.status)

    @property
    def alive(self) -> bool:
        """Return whether the loop turns: the liveness of the process."""
        return time.monotonic() < self._beat_due

    async def run(self, stop: asyncio.Event) -> None:
        """Deliver until told to stop, then revoke and, by policy, wipe."""
        try:
            while not stop.is_set():
                wait = await _unless(stop, self.attempt())
                self._beat_due = time.monotonic() + wait + 2 * _LONGEST_ATTEMPT_SECONDS
                await _wait(stop, wait)
        finally:
            await self._leave()

    async def run_once(self, stop: asyncio.Event, timeout_seconds: float) -> None:
        """Deliver once, trying again until the time is up, and revoke.

        The last DeliveryError is raised if it never worked.
        """
        ends = time.monotonic() + timeout_seconds
        try:
            while not stop.is_set():
                wait = await _unless(stop, self.attempt())
                left = ends - time.monotonic()
                if self.status.state is State.READY or left <= 0:
                    break
                await _wait(stop, min(wait, left))
        finally:
            await self._farewell(self._session.end)
        if self.status.state is not State.READY:
            raise self._last_error or DeadlineError(
                "told to stop before the set was delivered", hint="run it again"
            )

    async def attempt(self) -> float:
        """Try to deliver once and return the seconds to wait before the next try.

        Woken before the time to retry, it only looks whether the set is to be wiped.
        """
        early = self._retry_at - time.monotonic()
        if early > 0 and self.status.cause:
            cause = self.status.cause
            lasted = time.monotonic() - self._outage.first_seen[cause]
            return min(early, self._enforce(self._rules.policies[cause], lasted))
        try:
            wait = await self._succeed()
        except DeliveryError as error:
            wait = self._fail(error)
        except Exception as error:  # noqa: BLE001 - the loop outlives what nobody foresaw
            self._log.unexpected("delivery.crashed", error)
            wait = self._fail(
                InternalError(
                    f"an unexpected {type(error).__name__} kept the set from its place",
                    hint="report the delivery.crashed line of the log",
                )
            )
        self._metrics.observe(self.status)
        return wait

    async def _succeed(self) -> float:
        before = self.status.state
        try:
            self.status = await self._worker.run(self._deliver, _LONGEST_ATTEMPT_SECONDS)
        except TimeoutError:
            raise DeadlineError(
                "the attempt did not end in time", hint="Vault or the network is very slow"
            ) from None
        self._outage, self._last_error = Outage(), None
        self._tell(before)
        await self._await_consumer()
        interval = poll_wait(self._rules.poll_seconds, _dice())
        return max(_SHORTEST_WAIT_SECONDS, min(interval, self._session.refresh_in()))

    async def _await_consumer(self) -> None:
        """Note the consumer's word on the set; the state says already that it is in place."""
        consumer, current = self._consumer, self.status.published
        if consumer is None or current is None or self.status.acknowledged:
            return
        self._metrics.observe(self.status)
        call = partial(self._hand_over, consumer, current)
        try:
            accepted = await self._worker.run(call, _LONGEST_ATTEMPT_SECONDS)
        except TimeoutError:
            accepted = False
        self.status = replace(self.status, acknowledged=accepted)

    def _deliver(self) -> Status:
        """Fetch, verify and publish; runs on the worker thread."""
        secret = self._session.fetch()
        now = datetime.now(UTC)
        values = secret.values
        try:
            verified = verify(
                values,
                secret.version,
                self._rules.names,
                now,
                clock_ahead=self._session.clock_ahead,
            )
            try:
                current = self._in_place(verified.delivered, now)
            finally:
                verified.delivered.wipe()
            self._publisher.sweep(now)
        finally:
            for value in values.values():
                if value is not None:
                    value.wipe()
        return self.status.delivered(current, verified.expiries, now)

    def _in_place(self, delivered: SecretSet, now: datetime) -> Published:
        """Return the generation that holds this set, a new one if need be."""
        current = self._publisher.current()
        if current is None or not self._publisher.holds(delivered):
            return self._publish(delivered, now, first=current is None)
        return current

    def _publish(self, delivered: SecretSet, now: datetime, *, first: bool) -> Published:
        """Put the set in place, after its trial."""
        trial = self._trial
        if trial is not None:
            trial.check_known(delivered)
        staged = self._publisher.stage(delivered, now)
        try:
            if trial is not None:
                trial.judge(staged.generation, delivered, first=first)
            self._publisher.put_in_place(staged)
        except BaseException:
            self._publisher.discard(staged)
            raise
        self._metrics.publishes.inc()
        self._log.info("set.published", generation=staged.generation, kv_version=staged.version)
        return staged

    def _hand_over(self, consumer: CredentialConsumer, current: Published) -> bool:
        """Return whether the consumer takes the set up; runs on the worker thread."""
        answer = consumer.reload(current.generation)
        self._log.info(
            "consumer.answered" if answer.given else "consumer.silent",
            generation=current.generation,
            accepted=answer.accepted,
            reason=answer.reason,
        )
        return answer.accepted

    def _tell(self, before: State) -> None:
        status = self.status
        if status.state is not before and status.published:
            self._log.info(
                "state.changed",
                state=status.state.value,
                was=before.value,
                generation=status.published.generation,
                kv_version=status.published.version,
            )

    def _fail(self, error: DeliveryError) -> float:
        self._last_error = error
        now = time.monotonic()
        lasted = self._outage.record(error.cause, now)
        policy = self._rules.policies[error.cause]
        before = self.status.state
        self.status = self.status.failed(error, self._publisher.current())
        self._metrics.failed(error.cause)
        wait = self._backoff.wait(self._outage.failures, _dice(), error.retry_after_seconds)
        self._retry_at = now + wait
        self._log.thinned(
            "delivery.failed",
            same=f"{error.cause.value} {error.reason} {self.status.state.value}",
            every_seconds=_REPEAT_WARNING_SECONDS,
            state=self.status.state.value,
            was=before.value,
            cause=error.cause.value,
            reason=error.reason,
            error=str(error),
            hint=error.hint,
            retry_in_seconds=round(wait, 1),
        )
        return min(wait, self._enforce(policy, lasted))

    def _enforce(self, policy: Policy, lasted_seconds: float) -> float:
        """Wipe the set if its policy says so now; return the seconds until it might."""
        if self._publisher.current() is None:
            return float("inf")
        if policy.action(lasted_seconds) is Action.KEEP:
            return policy.due_in(lasted_seconds)
        try:
            self._publisher.wipe()
        except DeliveryError as error:
            self._log.warning("set.not_wiped", error=str(error))
            return float("inf")
        self.status = self.status.revoked()
        cause = self.status.cause
        self._log.warning("set.wiped", cause=cause.value if cause else "exit")
        return float("inf")

    async def _leave(self) -> None:
        await self._farewell(self._session.end)
        if self._rules.wipe_on_exit:
            self._enforce(Policy(0.0), 0.0)
            self._metrics.observe(self.status)

    async def _farewell(self, call: Callable[[], None]) -> None:
        if self._consumer is not None:
            self._consumer.abandon()  # else its call would hold up the revocation
        try:
            await self._worker.run(call, _LONGEST_FAREWELL_SECONDS)
        except TimeoutError:
            self._log.warning("token.not_revoked", cause=Cause.TIMEOUT.value)


def _dice() -> float:
    return random.random()  # noqa: S311 - spreads load, guards nothing


async def _unless(stop: asyncio.Event, attempt: Coroutine[None, None, float]) -> float:
    """Return what the attempt returns, or 0 as soon as the process is told to stop."""
    task = asyncio.create_task(attempt)
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else 0.0
    finally:
        for each in (task, stopped):
            each.cancel()


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
