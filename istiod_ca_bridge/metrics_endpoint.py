"""`GET /metrics` over HTTP/1.1, and nothing else."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus

from istiod_ca_bridge.errors import BridgeError
from istiod_ca_bridge.metrics import CONTENT_TYPE
from istiod_ca_bridge.setting_values import Address

_PATH = "/metrics"
_LARGEST_REQUEST_BYTES = 8 << 10
_SECONDS = 5.0
_CLOSE_SECONDS = 1.0
_AT_ONCE = 16


@contextlib.asynccontextmanager
async def metrics_endpoint(
    address: Address | None, exposition: Callable[[], Awaitable[bytes]]
) -> AsyncIterator[None]:
    """Serve the figures; without an address, nobody can ask."""
    if address is None:
        yield
        return
    places = asyncio.Semaphore(_AT_ONCE)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(
            OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError
        ):
            async with asyncio.timeout(_SECONDS), places:
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(await _response(head, exposition))
                await writer.drain()
        writer.close()
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await writer.wait_closed()
        except OSError:  # a TimeoutError is one: its client does not read
            writer.transport.abort()

    try:
        server = await asyncio.start_server(
            answer, address.host, address.port, limit=_LARGEST_REQUEST_BYTES
        )
    except OSError as error:
        raise BridgeError(
            f"cannot listen on {address}: {error.strerror}", hint="look at METRICS_LISTEN"
        ) from error
    try:
        yield
    finally:
        server.close()


async def _response(head: bytes, exposition: Callable[[], Awaitable[bytes]]) -> bytes:
    method, _, rest = head.split(b"\r\n", 1)[0].decode("latin-1").partition(" ")
    path = rest.partition(" ")[0].partition("?")[0]
    status = (
        HTTPStatus.METHOD_NOT_ALLOWED
        if method not in {"GET", "HEAD"}
        else HTTPStatus.OK
        if path == _PATH
        else HTTPStatus.NOT_FOUND
    )
    body = await exposition() if status is HTTPStatus.OK else b""
    lines = (
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Content-Type: {CONTENT_TYPE}",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        "Connection: close",
        "",
        "",
    )
    return "\r\n".join(lines).encode() + (b"" if method == "HEAD" else body)
