"""Who writes, among replicas: a lease that one holds and renews, as client-go's elector does it.

Clocks of different hosts are never compared. Another's lease is over when it was not seen to
change for as long as it lasts, by this process's own monotonic clock.
"""

from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True)
class LeaseTiming:
    """How long a lease lasts and what follows from it, in seconds."""

    duration: float = 15.0

    @property
    def renew_within(self) -> float:
        """A leader that could not renew for so long leads no more: well before others may."""
        return self.duration * 2 / 3

    @property
    def retry(self) -> float:
        """How often each looks."""
        return self.duration * 2 / 15


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """What the lease says. `revision` changes whenever anything in it does."""

    holder: str
    duration: float
    transitions: int
    revision: str


class Action(Enum):
    """What to do with the lease now."""

    CREATE = "create"
    ACQUIRE = "acquire"
    RENEW = "renew"
    WAIT = "wait"


class Election:
    """One candidate's view of the lease."""

    def __init__(self, identity: str, timing: LeaseTiming) -> None:
        self.identity = identity
        self.timing = timing
        self._seen: LeaseRecord | None = None
        self._seen_at = 0.0
        self._renewed_at: float | None = None

    def leads(self, now: float) -> bool:
        """Tell whether this candidate may write at this moment of its monotonic clock."""
        return self._renewed_at is not None and now - self._renewed_at < self.timing.renew_within

    def decide(self, record: LeaseRecord | None, now: float) -> Action:
        """Return what to do with the lease as it was just read."""
        if record is None:
            return Action.CREATE
        if self._seen is None or record.revision != self._seen.revision:
            self._seen, self._seen_at = record, now
        if record.holder == self.identity:
            return Action.RENEW
        self._renewed_at = None
        if not record.holder or now - self._seen_at >= record.duration:
            return Action.ACQUIRE
        return Action.WAIT

    def renewed(self, since: float) -> None:
        """Note that a write naming this candidate went through; `since`: when it was begun."""
        self._renewed_at = since

    def lost(self) -> None:
        """Note that another wrote, or that it was given up."""
        self._renewed_at = None
