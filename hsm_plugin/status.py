"""One table: our error -> gRPC status."""

import grpc

from hsm_plugin import errors

_STATUS: dict[type[errors.HsmPluginError], grpc.StatusCode] = {
    errors.AuditFailedError: grpc.StatusCode.UNAVAILABLE,
    errors.BadRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.ConflictError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ExpiredError: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.HsmUnavailableError: grpc.StatusCode.UNAVAILABLE,
    errors.KeyNotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.NoTrustedRootError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.OverloadedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.PinRefusedError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.StrangerError: grpc.StatusCode.UNAUTHENTICATED,
    errors.UnsupportedError: grpc.StatusCode.UNIMPLEMENTED,
}


def status_of(error: errors.HsmPluginError) -> grpc.StatusCode:
    """Return the status of the error's nearest class in the table; INTERNAL without one."""
    for kind in type(error).__mro__:
        if kind in _STATUS:
            return _STATUS[kind]
    return grpc.StatusCode.INTERNAL


def details_of(error: errors.HsmPluginError) -> str:
    """Return the cause, and the hint in brackets: what a client's log shows."""
    return f"{error} ({error.hint})" if error.hint else str(error)


def metadata_of(error: errors.HsmPluginError) -> tuple[tuple[str, str | bytes], ...]:
    """Return the trailing metadata: the hint, and when a retry may help.

    `grpc-retry-pushback-ms` is gRPC's own: a client with a retry policy waits that long
    (gRFC A6).
    """
    metadata: list[tuple[str, str | bytes]] = []
    if error.hint:
        metadata.append(("hint-bin", error.hint.encode()))
    if isinstance(error, errors.HsmUnavailableError) and error.retry_after_seconds is not None:
        pause = max(1, round(1000 * error.retry_after_seconds))
        metadata.append(("grpc-retry-pushback-ms", str(pause)))
    return tuple(metadata)
