"""What the process says of itself: one state, and why. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import Enum

from vault_client.delivery import Published
from vault_client.errors import Cause, DeliveryError


class State(Enum):
    """The four states of delivery."""

    STARTING = "starting"
    """No set is in place yet."""
    READY = "ready"
    """The set in place is the newest."""
    DEGRADED = "degraded"
    """A set is in place, and a fresh one cannot be had or may not be published."""
    REVOKED = "revoked"
    """The set was wiped, by policy or on the way out."""


@dataclass(frozen=True, slots=True)
class Status:
    """The state with its reasons; safe to show to anyone who may see the pod."""

    state: State = State.STARTING
    cause: Cause | None = None
    reason: str | None = None
    message: str | None = None
    hint: str | None = None
    published: Published | None = None
    last_success: datetime | None = None
    acknowledged: bool | None = None
    expiries: Mapping[str, datetime] = field(default_factory=dict)

    @property
    def in_place(self) -> bool:
        """Return whether a consumer finds a set."""
        return self.state in {State.READY, State.DEGRADED}

    def delivered(
        self, published: Published, expiries: Mapping[str, datetime], now: datetime
    ) -> "Status":
        """Return the status after the newest set was found or put in place."""
        return Status(
            state=State.READY,
            published=published,
            last_success=now,
            acknowledged=self.acknowledged if self._is_in_place(published) else None,
            expiries=expiries,
        )

    def _is_in_place(self, published: Published) -> bool:
        return self.published is not None and self.published.generation == published.generation

    def failed(self, error: DeliveryError, in_place: Published | None) -> "Status":
        """Return the status after an attempt failed with this set, or none, in place."""
        without = State.REVOKED if self.state is State.REVOKED else State.STARTING
        return replace(
            self,
            state=State.DEGRADED if in_place else without,
            cause=error.cause,
            reason=error.reason,
            message=str(error),
            hint=error.hint,
            published=in_place,
        )

    def revoked(self) -> "Status":
        """Return the status after the set was wiped; the causes stay."""
        return replace(self, state=State.REVOKED, published=None, expiries={})

    def as_fields(self) -> dict[str, str | int | bool | None]:
        """Return the status as plain values, for JSON."""
        return {
            "state": self.state.value,
            "cause": self.cause.value if self.cause else None,
            "reason": self.reason,
            "message": self.message,
            "hint": self.hint,
            "generation": self.published.generation if self.published else None,
            "kv_version": self.published.version if self.published else None,
            "published_at": _iso(self.published.published_at if self.published else None),
            "last_success": _iso(self.last_success),
            "acknowledged": self.acknowledged,
        }


def _iso(instant: datetime | None) -> str | None:
    return instant.isoformat() if instant else None
