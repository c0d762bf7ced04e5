"""Publishes what a replica has to say: its Events and its report; as the leader the conditions."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable
from datetime import datetime

from istiod_ca_bridge.authority import Authority
from istiod_ca_bridge.conditions import Conditions, Happening
from istiod_ca_bridge.errors import ClusterUnavailableError
from istiod_ca_bridge.log import EventLog
from istiod_ca_bridge.replica_report import KEY_PREFIX, report_of
from istiod_ca_bridge.status_record import Series, StatusSink, status_values

_LOOK_SECONDS = 1.0
_REWRITE_SECONDS = 20.0
"""So that each replica is heard, and a ConfigMap that was changed by hand is right again soon."""

_MAX_SERIES = 128
_EVENTS_A_MINUTE = 60
"""Whatever flaps, the API server and its readers get no more than this."""


class StatusPublisher:
    """Carries what is new to the API server, once a second."""

    def __init__(
        self,
        replica: str,
        conditions: Conditions,
        serving: Callable[[], Authority | None],
        sink: StatusSink,
        leads: Callable[[], bool],
        clock: Callable[[], datetime],
        log: EventLog,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._replica = replica
        self._conditions = conditions
        self._serving = serving
        self._clock = clock
        self._sink = sink
        self._leads = leads
        self._log = log
        self._monotonic = monotonic
        self._process = secrets.token_hex(4)
        self._series: dict[tuple[str, str], Series] = {}
        self._pending: list[Happening] = []
        self._budget = float(_EVENTS_A_MINUTE)
        self._filled_at = monotonic()
        self._written: object = None
        self._written_at = 0.0
        self._told = ""

    async def run(self) -> None:
        """Publish until cancelled; then take the report back, for nothing is served any more."""
        try:
            while True:
                await self._look()
                await asyncio.sleep(_LOOK_SECONDS)
        finally:
            with contextlib.suppress(ClusterUnavailableError):
                await self._sink.write({KEY_PREFIX + self._replica: None})

    async def _look(self) -> None:
        try:
            await self._events()
            await self._status()
            self._told = ""
        except ClusterUnavailableError as error:
            if str(error) != self._told:
                self._told = str(error)
                self._log.warning("status.not_published", reason=str(error), hint=error.hint)

    async def _events(self) -> None:
        self._pending = [*self._pending, *self._conditions.take()][-_MAX_SERIES:]
        while self._pending and self._may_post():
            await self._post(self._pending[0])
            self._pending.pop(0)
            self._budget -= 1

    def _may_post(self) -> bool:
        now = self._monotonic()
        earned = (now - self._filled_at) * _EVENTS_A_MINUTE / 60
        self._budget = min(self._budget + earned, float(_EVENTS_A_MINUTE))
        self._filled_at = now
        return self._budget >= 1

    async def _post(self, happening: Happening) -> None:
        key = (happening.reason, happening.message)
        known = self._series.get(key)
        if known is None:
            name = f"istiod-ca-bridge.{self._process}.{secrets.token_hex(4)}"
            series = Series(happening, name, 1, happening.at)
        else:
            series = Series(known.happening, known.name, known.count + 1, happening.at)
        await self._sink.post(series)
        self._series.pop(key, None)
        self._series[key] = series
        while len(self._series) > _MAX_SERIES:
            self._series.pop(next(iter(self._series)))

    async def _status(self) -> None:
        authority = self._serving()
        facts = (self._leads(), authority, self._conditions.current())
        now = self._monotonic()
        if facts == self._written and now - self._written_at < _REWRITE_SECONDS:
            return
        values: dict[str, str | None] = {}
        if self._leads():
            chain_pem = authority.intermediates_pem + authority.roots_pem if authority else ""
            values |= status_values(self._conditions.current(), chain_pem)
        if authority is not None:
            report = report_of(self._replica, authority.chain, self._clock())
            values[KEY_PREFIX + self._replica] = report.text()
        if values:
            await self._sink.write(values)
        self._written, self._written_at = facts, now
