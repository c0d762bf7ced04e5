"""What this CA has to say about itself: conditions that hold, and events that happened.

Whoever publishes them takes the events away; the conditions stay, for a ConfigMap, a metric or a
person to read.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Protocol

_MAX_MESSAGE = 1000
_MAX_PENDING = 256
"""Of events while the API server is away; the oldest go first."""


class Kind(Enum):
    """The types of condition. All but Rotating are True when all is well."""

    READY = "Ready"
    KEY = "KeyAvailable"
    CHAIN = "ChainAccepted"
    FRESH = "CertificateFresh"
    API_SERVER = "ApiServerReachable"
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


class Observer(Protocol):
    """Is told at once of what changes."""

    def turned(self, condition: Condition) -> None:
        """Learn of a condition that was not known, or whose status changed."""
        ...

    def happened(self, happening: Happening) -> None:
        """Learn of what becomes an Event."""
        ...


_WELL = {Kind.ROTATING: False, Kind.API_SERVER: True}
"""The status that is news only after the other one."""


class Conditions:
    """The conditions that hold now, and what happened since somebody last took it."""

    def __init__(self, clock: Callable[[], datetime], observer: Observer | None = None) -> None:
        self._clock = clock
        self._observer = observer
        self._held: dict[Kind, Condition] = {}
        self._happened: deque[Happening] = deque(maxlen=_MAX_PENDING)

    def set(self, kind: Kind, reason: str, message: str, *, status: bool) -> None:
        """Have a condition hold; what changed in it is an event too."""
        message = message[:_MAX_MESSAGE]
        before = self._held.get(kind)
        now = self._clock()
        since = now if before is None or before.status is not status else before.last_transition
        self._held[kind] = held = Condition(kind, status, reason, message, since)
        if self._observer is not None and (before is None or before.status is not status):
            self._observer.turned(held)
        if before is not None and (before.reason, before.message) == (reason, message):
            return
        if before is None and _WELL.get(kind) is status:
            return
        self.happened(reason, message, is_warning=not status and kind is not Kind.ROTATING)

    def happened(self, reason: str, message: str, *, is_warning: bool = False) -> None:
        """Note an event that is no condition."""
        happening = Happening(reason, message[:_MAX_MESSAGE], is_warning, self._clock())
        self._happened.append(happening)
        if self._observer is not None:
            self._observer.happened(happening)

    def current(self) -> tuple[Condition, ...]:
        """Return all that hold, in the order of their kinds."""
        return tuple(self._held[kind] for kind in Kind if kind in self._held)

    def take(self) -> tuple[Happening, ...]:
        """Return what happened since the last call."""
        taken = tuple(self._happened)
        self._happened.clear()
        return taken
