"""What becomes of the published set while no fresh one can be had: one policy for each cause."""

from dataclasses import dataclass, field
from enum import Enum

from vault_client.errors import Cause


class Action(Enum):
    """What a policy does to the published set."""

    KEEP = "keep"
    WIPE = "wipe"


@dataclass(frozen=True, slots=True)
class Policy:
    """Keep for ever (`keep_seconds` is None), or wipe once the cause has lasted so long."""

    keep_seconds: float | None = None

    def action(self, lasted_seconds: float) -> Action:
        """Return what to do with the set after the cause has lasted so long."""
        if self.keep_seconds is None or lasted_seconds < self.keep_seconds:
            return Action.KEEP
        return Action.WIPE

    def due_in(self, lasted_seconds: float) -> float:
        """Return the seconds until the set is wiped; infinity if it is kept."""
        if self.keep_seconds is None:
            return float("inf")
        return max(0.0, self.keep_seconds - lasted_seconds)


KEEP = Policy()

DEFAULT_POLICIES = dict.fromkeys(Cause, KEEP) | {
    Cause.DELETED: Policy(15 * 60),
    Cause.DESTROYED: Policy(15 * 60),
}


@dataclass(slots=True)
class Outage:
    """One run of failures: when each cause was first seen. Times are monotonic seconds."""

    failures: int = 0
    first_seen: dict[Cause, float] = field(default_factory=dict)

    def record(self, cause: Cause, now: float) -> float:
        """Count one failure and return how long its cause has lasted in this outage."""
        self.failures += 1
        return now - self.first_seen.setdefault(cause, now)
