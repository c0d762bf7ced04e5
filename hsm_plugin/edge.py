"""What every RPC passes: its deadline, the token bound to it, the status of its error, a record."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, TypeVar, cast

import grpc

from hsm_plugin.admission import Lane
from hsm_plugin.callers import Callers
from hsm_plugin.errors import AuditFailedError, ExpiredError, HsmPluginError
from hsm_plugin.keys import AsyncKeyStore
from hsm_plugin.log import event
from hsm_plugin.status import details_of, metadata_of, status_of
from hsm_plugin.token_client import TokenClient

_Api = TypeVar("_Api")
_Request = TypeVar("_Request")
_Response = TypeVar("_Response")

_MAX_SECONDS = 60.0
"""The deadline of a call that has none."""
_UNFORESEEN = HsmPluginError("internal error; see the plugin's log")


class Witness(Protocol):
    """Who sees every call."""

    def check(self) -> None:
        """Raise AuditFailedError when a call would go unrecorded that may not."""

    def ended(
        self,
        request: object,
        response: object,
        code: grpc.StatusCode,
        seconds: float,
        context: grpc.aio.ServicerContext[_Request, _Response],
    ) -> Awaitable[None] | None:
        """Take note of a call; the answer waits for what is returned, if anything is."""


class Edge(Generic[_Api]):
    """Serves one RPC: gives its API the token, bound to this call, and turns errors to statuses."""

    def __init__(
        self,
        token: TokenClient,
        callers: Callers,
        api: Callable[[AsyncKeyStore], _Api],
        witness: Witness,
    ) -> None:
        self._token = token
        self._callers = callers
        self._api = api
        self._witness = witness

    async def answer(
        self,
        context: grpc.aio.ServicerContext[_Request, _Response],
        call: Callable[[_Api, _Request], Awaitable[_Response]],
        request: _Request,
        lane: bytes,
    ) -> _Response:
        """Return the response, or abort with the status of the error.

        `lane`: a client's calls of one lane wait for each other; see hsm_plugin.admission.
        """
        started = time.perf_counter()
        response: _Response | None = None
        code, refused = grpc.StatusCode.OK, None
        try:
            self._witness.check()
            token = self._bound(context, lane)
            response = await call(self._api(token), request)
        except HsmPluginError as error:
            code, refused = status_of(error), error
            event(
                "rpc.refused",
                str(error),
                call=call.__name__,
                status=code.name,
                caller=self._callers.fields_of(context.peer()),
            )
        except asyncio.CancelledError:
            seconds = time.perf_counter() - started
            self._witness.ended(request, None, grpc.StatusCode.CANCELLED, seconds, context)
            raise
        except Exception as error:  # noqa: BLE001 - the edge: nothing may end the server
            code, refused = grpc.StatusCode.INTERNAL, _UNFORESEEN
            event(
                "rpc.failed",
                "A call failed in a way that was not foreseen",
                level=logging.ERROR,
                call=call.__name__,
                error=type(error).__name__,
            )
        seconds = time.perf_counter() - started
        recorded = self._witness.ended(request, response, code, seconds, context)
        if recorded is not None:
            try:
                await recorded
            except AuditFailedError as error:
                code, refused = status_of(error), error
        if refused is not None:
            await context.abort(code, details_of(refused), metadata_of(refused))
        return cast("_Response", response)

    def _bound(
        self, context: grpc.aio.ServicerContext[_Request, _Response], lane: bytes
    ) -> AsyncKeyStore:
        left = cast("float | None", context.time_remaining())  # None without a deadline
        seconds = _MAX_SECONDS if left is None else min(left, _MAX_SECONDS)
        caller = self._callers.behind(context.peer)
        _check_time_left(seconds)
        return self._token.bound(Lane(lane, caller.client), time.monotonic() + seconds)


def _check_time_left(seconds: float) -> None:
    if seconds <= 0:
        raise ExpiredError("the deadline passed before the call began")
