"""Whether the clock was set: then it and the monotonic clock do not go on together."""

import asyncio
import time
from collections.abc import Callable
from datetime import datetime

from istiod_ca_bridge.conditions import Conditions
from istiod_ca_bridge.log import EventLog

_LOOK_SECONDS = 1.0
_NOTICED_SECONDS = 10.0
"""NTP moves a clock by less; from two minutes on, certificates begin too late."""


class ClockWatch:
    """Tells of each jump."""

    def __init__(
        self,
        conditions: Conditions,
        clock: Callable[[], datetime],
        log: EventLog,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        look_seconds: float = _LOOK_SECONDS,
    ) -> None:
        self._conditions = conditions
        self._clock = clock
        self._log = log
        self._monotonic = monotonic
        self._look_seconds = look_seconds

    async def run(self) -> None:
        """Look until cancelled."""
        before = self._difference()
        while True:
            await asyncio.sleep(self._look_seconds)
            now = self._difference()
            jump, before = round(now - before), now
            if abs(jump) >= _NOTICED_SECONDS:
                way = "ahead" if jump > 0 else "back"
                message = f"the clock was set {way} by {abs(jump)} s"
                hint = "certificates are dated by it: look at the node's time synchronisation"
                self._log.warning("clock.jumped", seconds=jump, hint=hint)
                self._conditions.happened("ClockJumped", f"{message}; {hint}", is_warning=True)

    def _difference(self) -> float:
        return self._clock().timestamp() - self._monotonic()
