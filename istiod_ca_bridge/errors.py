"""What can go wrong, one class for each decision that a caller makes.

`str(error)` says what happened and why, `error.hint` what to do next. Neither ever holds a
token, a private key or a plaintext.
"""


class BridgeError(Exception):
    """The base of every error that this package raises on purpose."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def error_in(raised: BaseException) -> BridgeError | None:
    """Return the one of our errors that this is, or that ended its task group."""
    if isinstance(raised, BaseExceptionGroup):
        return next(filter(None, map(error_in, raised.exceptions)), None)
    return raised if isinstance(raised, BridgeError) else None


class ConfigError(BridgeError):
    """The process was started with settings that cannot work; mend them and start again."""


class UnauthenticatedError(BridgeError):
    """The caller did not prove who it is."""


class InvalidIdentityError(UnauthenticatedError):
    """A name is not a SPIFFE identity of a workload in this mesh."""


class RefusedRequestError(BridgeError):
    """The request cannot succeed as it stands, whoever sends it."""


class RefusedLifetimeError(RefusedRequestError):
    """The lifetime asked for is none that policy gives."""


class ForbiddenError(BridgeError):
    """The caller is known and may not have what it asks for."""


class NotServingError(BridgeError):
    """There is no CA certificate to issue under now; the caller tries again."""


class OverloadedError(BridgeError):
    """Too many requests wait already; the caller tries again later."""

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds."""


class IssuanceLogError(BridgeError):
    """The issuance log cannot be written now: what it does not hold does not leave."""


class TamperedLogError(BridgeError):
    """An issuance log is not as it was written; the message names the first fault."""


class WrongProductError(BridgeError):
    """A signed certificate is not what was granted; it must not leave."""


class KeyServiceUnavailableError(BridgeError):
    """The HSM plugin did not answer in time, or cannot reach its HSM; tried again."""


class ClusterUnavailableError(BridgeError):
    """The Kubernetes API server cannot be asked now, or does not let us; tried again."""


class AnsweredElsewhereError(BridgeError):
    """A request has another answer by now, or is gone; there is nothing left to do."""


class ForbiddenByClusterError(ClusterUnavailableError):
    """The API server answers, and this account lacks a right; an operator grants it."""


class KeyServiceNotPreparedError(KeyServiceUnavailableError):
    """The plugin answers, and lacks something an operator brings: a KEK, a root, a PIN."""


class KeyServiceRefusedError(BridgeError):
    """The plugin refuses the request as it stands; the same request never succeeds."""


class StoreUnavailableError(BridgeError):
    """The Secrets cannot be read or written now; tried again."""


class SecretExistsError(BridgeError):
    """Another writer made the Secret first; read it again."""


class LeaderAwaitedError(BridgeError):
    """Another replica is to write this; it is looked at again."""


class CorruptSecretError(BridgeError):
    """A Secret exists and cannot be used; nothing is made anew over it, an operator decides."""


class RefusedChainError(BridgeError):
    """A CA certificate chain is not one this CA may serve with; another one is waited for."""
