"""Each of our errors has one gRPC status, and the client is told cause and hint."""

import grpc
import pytest

from hsm_plugin import errors
from hsm_plugin.status import details_of, status_of


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (errors.BadRequestError, grpc.StatusCode.INVALID_ARGUMENT),
        (errors.RejectedBlobError, grpc.StatusCode.INVALID_ARGUMENT),
        (errors.RejectedChainError, grpc.StatusCode.INVALID_ARGUMENT),
        (errors.KeyNotFoundError, grpc.StatusCode.NOT_FOUND),
        (errors.ConflictError, grpc.StatusCode.FAILED_PRECONDITION),
        (errors.NoTrustedRootError, grpc.StatusCode.FAILED_PRECONDITION),
        (errors.UnsupportedError, grpc.StatusCode.UNIMPLEMENTED),
        (errors.OverloadedError, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errors.ExpiredError, grpc.StatusCode.DEADLINE_EXCEEDED),
        (errors.HsmUnavailableError, grpc.StatusCode.UNAVAILABLE),
        (errors.PinRefusedError, grpc.StatusCode.FAILED_PRECONDITION),
        (errors.ConfigError, grpc.StatusCode.INTERNAL),
        (errors.HsmPluginError, grpc.StatusCode.INTERNAL),
    ],
)
def test_an_error_has_its_status(
    kind: type[errors.HsmPluginError], status: grpc.StatusCode
) -> None:
    assert status_of(kind("cause")) is status


def test_a_new_kind_of_error_has_the_status_of_its_base() -> None:
    class NewError(errors.RejectedBlobError):
        pass

    assert status_of(NewError("cause")) is grpc.StatusCode.INVALID_ARGUMENT


def test_details_are_the_cause_and_the_hint_in_brackets() -> None:
    assert details_of(errors.BadRequestError("cause", hint="do this")) == "cause (do this)"
    assert details_of(errors.BadRequestError("cause")) == "cause"
