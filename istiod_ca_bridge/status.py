"""One table: our error -> gRPC status, and what the client is told."""

import grpc

from istiod_ca_bridge import errors

_STATUS: dict[type[errors.BridgeError], grpc.StatusCode] = {
    errors.UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    errors.ForbiddenError: grpc.StatusCode.PERMISSION_DENIED,
    errors.RefusedRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotServingError: grpc.StatusCode.UNAVAILABLE,
    errors.OverloadedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.KeyServiceUnavailableError: grpc.StatusCode.UNAVAILABLE,
    errors.ClusterUnavailableError: grpc.StatusCode.UNAVAILABLE,
    errors.IssuanceLogError: grpc.StatusCode.UNAVAILABLE,
}
_OURS: dict[type[errors.BridgeError], str] = {
    errors.KeyServiceUnavailableError: "the CA key cannot be used now; try again",
    errors.ClusterUnavailableError: "the Kubernetes API cannot be asked now; try again",
    errors.IssuanceLogError: "the issuance log cannot be written now; try again",
}
_INTERNAL = "internal error; the CA's log says more"


def status_of(error: errors.BridgeError) -> grpc.StatusCode:
    """Return the status of the error's nearest class in the table; INTERNAL without one."""
    kind = _kind(error)
    return grpc.StatusCode.INTERNAL if kind is None else _STATUS[kind]


def told(error: errors.BridgeError) -> str:
    """Return the client's reason: short, and nothing about our insides."""
    kind = _kind(error)
    if kind is None:
        return _INTERNAL
    return _OURS.get(kind, f"{error} ({error.hint})" if error.hint else str(error))


def _kind(error: errors.BridgeError) -> type[errors.BridgeError] | None:
    return next((kind for kind in type(error).__mro__ if kind in _STATUS), None)
