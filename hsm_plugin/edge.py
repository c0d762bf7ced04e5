"""What every RPC passes: its deadline, the token bound to it, and the status of its error."""

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar, cast

import grpc

from hsm_plugin.admission import Lane
from hsm_plugin.callers import Callers
from hsm_plugin.errors import ExpiredError, HsmPluginError
from hsm_plugin.keys import AsyncKeyStore
from hsm_plugin.log import event
from hsm_plugin.status import details_of, metadata_of, status_of
from hsm_plugin.token_client import TokenClient

_Api = TypeVar("_Api")
_Request = TypeVar("_Request")
_Response = TypeVar("_Response")

_MAX_SECONDS = 60.0
"""The deadline of a call that has none."""


class Edge(Generic[_Api]):
    """Serves one RPC: gives its API the token, bound to this call, and turns errors to statuses."""

    def __init__(
        self, token: TokenClient, callers: Callers, api: Callable[[AsyncKeyStore], _Api]
    ) -> None:
        self._token = token
        self._callers = callers
        self._api = api

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
        left = cast("float | None", context.time_remaining())  # None without a deadline
        seconds = _MAX_SECONDS if left is None else min(left, _MAX_SECONDS)
        try:
            caller = self._callers.of(context.peer())
            _check_time_left(seconds)
            token = self._token.bound(Lane(lane, caller.client), time.monotonic() + seconds)
            return await call(self._api(token), request)
        except HsmPluginError as error:
            status = status_of(error)
            event(
                "rpc.refused",
                str(error),
                call=call.__name__,
                status=status.name,
                caller=self._callers.fields_of(context.peer()),
            )
            await context.abort(status, details_of(error), metadata_of(error))
        except Exception as error:  # noqa: BLE001 - the edge: nothing may end the server
            event(
                "rpc.failed",
                "A call failed in a way that was not foreseen",
                level=logging.ERROR,
                call=call.__name__,
                error=type(error).__name__,
            )
            await context.abort(grpc.StatusCode.INTERNAL, "internal error; see the plugin's log")


def _check_time_left(seconds: float) -> None:
    if seconds <= 0:
        raise ExpiredError("the deadline passed before the call began")
