"""What this CA has to say about itself: conditions that hold, and events that happened.

Whoever publishes them takes the events away; the conditions stay, for a ConfigMap, a metric or a
person to read.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

_MAX_MESSAGE = 1000
_MAX_PENDING = 256
"""Of events while the API server is away; the oldest go first."""


class Kind(Enum):
    """The types of condition. All but Rotating are True when all is well."""

    READY = "Ready"
    KEY = "KeyAvailable"
    CHAIN = "ChainAccepted"
    FRESH = "CertificateFresh"
    ROTATING = "Rotating"


@dataclass(frozen=True, slots=True)
class Condition:
    """One fact and since when it holds; as Kubernetes forms conditions."""

    kind: Kind
    status: bool
    reason: str
    """One word in CamelCase, for programs."""

    message: str
    """For people."""

    last_transition: datetime
    """When status last changed."""

    def as_json(self) -> dict[str, str]:
        """Return the form that operators read."""
        return {
            "type": self.kind.value,
            "status": str(self.status),
            "reason": self.reason,
            "message": self.message,
            "lastTransitionTime": f"{self.last_transition:%FT%TZ}",
        }


@dataclass(frozen=True, slots=True)
class Happening:
    """Something that an operator should find among the Events."""

    reason: str
    message: str
    is_warning: bool
    at: datetime


class Conditions:
    """The conditions that hold now, and what happened since somebody last took it."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._held: dict[Kind, Condition] = {}
        self._happened: deque[Happening] = deque(maxlen=_MAX_PENDING)

    def set(self, kind: Kind, reason: str, message: str, *, status: bool) -> None:
        """Have a condition hold; what changed in it is an event too."""
        message = message[:_MAX_MESSAGE]
        before = self._held.get(kind)
        now = self._clock()
        since = now if before is None or before.status is not status else before.last_transition
        self._held[kind] = Condition(kind, status, reason, message, since)
        if before is not None and (before.reason, before.message) == (reason, message):
            return
        if before is None and kind is Kind.ROTATING and not status:
            return  # that there is no rotation is news only after there was one
        self.happened(reason, message, is_warning=not status and kind is not Kind.ROTATING)

    def happened(self, reason: str, message: str, *, is_warning: bool = False) -> None:
        """Note an event that is no condition."""
        self._happened.append(Happening(reason, message[:_MAX_MESSAGE], is_warning, self._clock()))

    def current(self) -> tuple[Condition, ...]:
        """Return all that hold, in the order of their kinds."""
        return tuple(self._held[kind] for kind in Kind if kind in self._held)

    def take(self) -> tuple[Happening, ...]:
        """Return what happened since the last call."""
        taken = tuple(self._happened)
        self._happened.clear()
        return taken
