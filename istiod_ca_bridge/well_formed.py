"""Bytes that are no message of a method are INVALID_ARGUMENT, before its servicer sees them.

Left to grpcio they are UNKNOWN, and each one writes a traceback into the log.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, cast

import grpc
from google.protobuf.message import DecodeError


def well_formed(server: grpc.aio.Server) -> grpc.aio.Server:
    """Return what services are added to in place of the server, with `add_…_to_server`."""
    return cast("grpc.aio.Server", _Registrar(server))


class _Registrar:
    """The two methods of a server that generated code calls."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Sequence[object]) -> None:
        """Leave them out: the same methods come again, by name."""

    # Any: grpcio's handlers are tuples of functions of any message.
    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Register the methods of a service, each behind its decoding."""
        decoding = {name: _decoding(handler) for name, handler in handlers.items()}
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, decoding),)
        )


def _decoding(handler: Any) -> Any:
    """Return a handler of the same method that decodes by itself; a streaming one as it is."""
    call: Callable[[object, object], Awaitable[object]] | None = handler.unary_unary
    decode: Callable[[bytes], object] | None = handler.request_deserializer
    if call is None or decode is None:
        return handler

    async def answer(data: bytes, context: grpc.aio.ServicerContext[object, object]) -> object:
        try:
            request = decode(data)
        except DecodeError:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, "the request is no message of this method"
            )
        return await call(request, context)

    return grpc.unary_unary_rpc_method_handler(
        answer, response_serializer=handler.response_serializer
    )
