"""An empty gRPC server on a Unix socket: the ceiling that the interpreter sets.

Arguments: the socket, and whose event loop it runs on, `asyncio` or `uvloop`.
"""

import asyncio
import sys

import grpc
import uvloop

METHOD = "/bench.Echo/Call"


async def _serve(socket: str) -> None:
    async def answer(request: bytes, _context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        return request

    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(answer)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("bench.Echo", {"Call": handler}),)
    )
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    run = {"asyncio": asyncio.run, "uvloop": uvloop.run}[sys.argv[2]]
    run(_serve(sys.argv[1]))
