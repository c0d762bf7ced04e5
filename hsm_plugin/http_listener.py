"""/metrics, /healthz and /readyz over HTTP/1.1: small, bounded, one answer a connection."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus

from hsm_plugin.errors import ConfigError

_MAX_HEAD_BYTES = 8 << 10
_MAX_CONNECTIONS = 16
_SECONDS = 5.0
"""For a whole exchange."""
_CLOSE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class HttpAddress:
    """Where to listen."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Page:
    """What one path answers."""

    status: HTTPStatus
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


Pages = Mapping[str, Callable[[], Awaitable[Page]]]
"""Path -> what makes its page."""


async def listen(address: HttpAddress, pages: Pages) -> asyncio.Server:
    """Return the listening server; ConfigError when the address cannot be had."""
    connections = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        try:
            if connections <= _MAX_CONNECTIONS:
                await _exchange(reader, writer, pages)
        finally:
            await _close(writer)
            connections -= 1

    try:
        return await asyncio.start_server(
            answer, address.host or None, address.port, limit=_MAX_HEAD_BYTES
        )
    except OSError as error:
        raise ConfigError(
            f"METRICS_LISTEN {address.host}:{address.port} cannot be listened on: {error.strerror}",
            hint="choose a free port of an address of this host",
        ) from None


async def _close(writer: asyncio.StreamWriter) -> None:
    """Return when the connection is closed, cut where its client does not read."""
    writer.close()
    try:
        async with asyncio.timeout(_CLOSE_SECONDS):
            await writer.wait_closed()
    except OSError:  # a TimeoutError is one
        writer.transport.abort()


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pages: Pages
) -> None:
    with contextlib.suppress(
        OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError
    ):
        async with asyncio.timeout(_SECONDS):
            head = await reader.readuntil(b"\r\n\r\n")
            method, _, rest = head.split(b"\r\n", 1)[0].decode("latin-1").partition(" ")
            page = await _page(method, rest.partition(" ")[0].partition("?")[0], pages)
            writer.write(_encoded(page, with_body=method != "HEAD"))
            await writer.drain()


async def _page(method: str, path: str, pages: Pages) -> Page:
    if method not in {"GET", "HEAD"}:
        return Page(HTTPStatus.METHOD_NOT_ALLOWED, b"GET and HEAD only\n")
    make = pages.get(path)
    if make is None:
        return Page(HTTPStatus.NOT_FOUND, f"see {', '.join(pages)}\n".encode())
    return await make()


def _encoded(page: Page, *, with_body: bool) -> bytes:
    head = (
        f"HTTP/1.1 {page.status.value} {page.status.phrase}",
        f"Content-Type: {page.content_type}",
        f"Content-Length: {len(page.body)}",
        "Cache-Control: no-store",
        "Connection: close",
        "",
        "",
    )
    return "\r\n".join(head).encode() + (page.body if with_body else b"")
