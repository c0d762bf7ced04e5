"""What can go wrong, one class for each decision that a caller makes.

`str(error)` says what happened and why, `error.hint` what to do next. Neither ever holds a
PIN, a key or a plaintext.
"""


class HsmPluginError(Exception):
    """The base of every error that this package raises on purpose."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ConfigError(HsmPluginError):
    """The process was started with settings that cannot work; mend them and start again."""


class ModuleError(ConfigError):
    """The PKCS#11 module cannot be loaded."""


class BadRequestError(HsmPluginError):
    """The request cannot succeed as it stands, whatever the state of the HSM."""


class RejectedBlobError(BadRequestError):
    """A blob is malformed, was changed, or belongs to another key or another context."""


class RejectedChainError(BadRequestError):
    """A certificate or a chain is not what it must be."""


class KeyNotFoundError(HsmPluginError):
    """No object in the token matches the reference."""


class ConflictError(HsmPluginError):
    """The state of the token forbids the call: two objects match, or another one is there."""


class NoTrustedRootError(HsmPluginError):
    """No root certificate was imported, so no chain can be verified."""


class UnsupportedError(HsmPluginError):
    """The token or this version cannot do what was asked."""


class OverloadedError(HsmPluginError):
    """Too many calls wait for the token already; try again later."""


class ExpiredError(HsmPluginError):
    """The caller's deadline passed before the token was touched."""


class StrangerError(HsmPluginError):
    """The call came by a connection that nobody vouches for."""


class AuditFailedError(HsmPluginError):
    """The use of a key cannot be recorded, so it is refused."""


class HsmUnavailableError(HsmPluginError):
    """The token cannot be reached now; it is looked for again in the background.

    `retry_after_seconds`: when the next call may find it again, as far as is known.
    """

    def __init__(
        self, message: str, *, hint: str = "", retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_seconds = retry_after_seconds


class HungCallError(HsmUnavailableError):
    """The PKCS#11 module did not return from this very call; it is not sent again."""


class PinRefusedError(HsmUnavailableError):
    """The token refuses this PIN, or it may not be tried; only a new PIN helps."""
