"""What can go wrong, one class for each decision that a caller makes.

`str(error)` says what happened and why, `error.hint` what to do next. Neither ever holds a
token, a key or a secret's value.
"""

from enum import Enum
from typing import ClassVar


class Cause(Enum):
    """Why the last attempt delivered nothing: one state, and one policy, for each."""

    FORBIDDEN = "forbidden"
    REJECTED = "rejected"
    MISSING = "missing"
    DELETED = "deleted"
    DESTROYED = "destroyed"
    INVALID = "invalid"
    TRIAL = "trial"
    SEALED = "sealed"
    RATE_LIMITED = "rate_limited"
    SERVER_ERROR = "server_error"
    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"
    TLS = "tls"
    CREDENTIALS = "credentials"
    TARGET = "target"
    INTERNAL = "internal"


class VaultClientError(Exception):
    """The base of every error that this package raises on purpose."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ConfigError(VaultClientError):
    """The process was started with settings that cannot work; mend them and start again."""


class DeliveryError(VaultClientError):
    """The base of every reason that kept a fresh set from its place; tried again later."""

    cause: ClassVar[Cause]

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        reason: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason
        """One word that tells apart what the cause alone does not, such as `audience`."""
        self.retry_after_seconds = retry_after_seconds


class ForbiddenError(DeliveryError):
    """Vault refused who we are or what we may read (403)."""

    cause = Cause.FORBIDDEN


class RejectedError(DeliveryError):
    """Vault calls the request itself wrong (400): most often the role does not exist."""

    cause = Cause.REJECTED


class MissingError(DeliveryError):
    """Nothing was ever written at the path, or the path is wrong (404)."""

    cause = Cause.MISSING


class DeletedError(DeliveryError):
    """The newest version was deleted and can be undeleted."""

    cause = Cause.DELETED


class DestroyedError(DeliveryError):
    """The newest version was destroyed for good."""

    cause = Cause.DESTROYED


class InvalidSetError(DeliveryError):
    """The secret was read, but its parts cannot work together; it is not published."""

    cause = Cause.INVALID


class TrialError(DeliveryError):
    """The plugin could not log in to the HSM with the set's PIN, or did not try; see `reason`."""

    cause = Cause.TRIAL


class SealedError(DeliveryError):
    """Vault answers but is sealed or was never initialised."""

    cause = Cause.SEALED


class RateLimitedError(DeliveryError):
    """Vault asks for fewer requests (429)."""

    cause = Cause.RATE_LIMITED


class ServerError(DeliveryError):
    """Vault failed (5xx), or what answered is not Vault."""

    cause = Cause.SERVER_ERROR


class DeadlineError(DeliveryError):
    """No answer came in time."""

    cause = Cause.TIMEOUT


class UnreachableError(DeliveryError):
    """No connection could be made."""

    cause = Cause.UNREACHABLE


class TlsError(DeliveryError):
    """The server could not prove who it is, or the CA to judge it by is not to be had."""

    cause = Cause.TLS


class CredentialsError(DeliveryError):
    """What we would log in with (token, AppRole ids) cannot be read here."""

    cause = Cause.CREDENTIALS


class TargetError(DeliveryError):
    """The output directory does not take the set."""

    cause = Cause.TARGET


class InternalError(DeliveryError):
    """Something that nobody foresaw; the loop goes on."""

    cause = Cause.INTERNAL
