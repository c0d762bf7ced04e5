"""Strikes as the schedule says, waits each time until all is sound, and notes what it saw."""

import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from chaos.blows import DOINGS
from chaos.endpoints import Endpoints
from chaos.schedule import Blow, Stroke
from chaos.sidecars import Tally
from chaos.site import Site
from chaos.usage import Usage, usage_of

RECOVERY_SECONDS = 60.0
"""A system that is not sound by then does not recover by itself."""
_CALM_SECONDS = 1.0
_POLL_SECONDS = 0.15


@dataclass(frozen=True, slots=True)
class Outcome:
    """One stroke, and what came of it."""

    blows: tuple[Blow, ...]
    statuses: Counter[str]
    """Of the calls that ended from its begin to the recovery."""
    longest_wait: float
    """Of a request, with all its attempts."""
    recovery: float | None
    """From its end, or its begin when nobody ends it; None: it did not recover."""
    trouble: tuple[str, ...]
    """What was not sound when the time was over."""

    @property
    def name(self) -> str:
        """What was done."""
        return " + ".join(blow.fault.title for blow in self.blows)


@dataclass(slots=True)
class Conductor:
    """Runs one schedule."""

    site: Site
    endpoints: Endpoints
    tally: Tally
    outcomes: list[Outcome] = field(default_factory=list)
    at_rest: dict[tuple[str, int], list[Usage]] = field(default_factory=dict)
    """What each process held whenever all was sound."""

    def run(self, strokes: Iterator[Stroke], seconds: float) -> None:
        """Strike until the time is over; the last stroke is brought to its end."""
        end = time.monotonic() + seconds
        for stroke in strokes:
            if time.monotonic() + stroke.seconds > end:
                return
            outcome = self.strike(stroke)
            self.outcomes.append(outcome)
            told = "never" if outcome.recovery is None else f"{outcome.recovery:.1f} s"
            failed = outcome.statuses.total() - outcome.statuses["OK"]
            sys.stderr.write(f"{outcome.name}: {failed} calls failed, sound after {told}\n")
            if outcome.recovery is None:
                return
            self._rest(stroke.rest)

    def strike(self, stroke: Stroke) -> Outcome:
        """Do one stroke and wait for the recovery."""
        began = time.monotonic()
        for blow in stroke.blows:
            DOINGS[blow.fault].begin(self.site, blow)
        ended = time.monotonic()
        for blow in sorted(stroke.blows, key=lambda it: it.seconds):
            if blow.fault.lasts:
                time.sleep(max(began + blow.seconds - time.monotonic(), 0.0))
                DOINGS[blow.fault].end(self.site, blow)
                ended = time.monotonic()
        recovered, trouble = self._await_soundness(ended)
        until = time.monotonic()
        return Outcome(
            blows=stroke.blows,
            statuses=Counter(
                it.status for it in reversed(self.tally.attempts) if began <= it.at <= until
            ),
            longest_wait=max(
                (waited for at, waited in self.tally.waits if began <= at <= until), default=0.0
            ),
            recovery=None if recovered is None else recovered - ended,
            trouble=trouble,
        )

    def _await_soundness(self, ended: float) -> tuple[float | None, tuple[str, ...]]:
        """Return when all was sound and stayed so: every part says so, every replica issues."""
        sound_since: float | None = None
        trouble: list[str] = []
        while True:
            began = time.monotonic()
            trouble = self.site.trouble() + self._silent(ended)
            now = time.monotonic()
            if trouble:
                sound_since = None
            elif sound_since is None:
                sound_since = began
            failed = self.tally.last_failure(ended)
            if sound_since is not None and now - max(sound_since, failed) >= _CALM_SECONDS:
                return max(sound_since, failed), ()
            if now - ended > RECOVERY_SECONDS:
                return None, tuple(trouble or ["calls still fail"])
            time.sleep(_POLL_SECONDS)

    def _silent(self, since: float) -> list[str]:
        """Return the replicas that have issued nothing since, and get no connections."""
        return [
            f"{bridge.name} issues nothing"
            for bridge, address in zip(self.site.bridges, self.site.addresses, strict=True)
            if not self.tally.last_answer_from(address, since)
        ]

    def _rest(self, seconds: float) -> None:
        time.sleep(seconds)
        for process in self.site.ours:
            pid = process.pid
            usage = usage_of(pid, time.monotonic()) if pid is not None else None
            if pid is not None and usage is not None:
                self.at_rest.setdefault((process.name, pid), []).append(usage)
