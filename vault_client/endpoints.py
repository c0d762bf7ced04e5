"""/healthz, /readyz and /metrics over HTTP/1.1, and the question that an exec probe asks."""

import asyncio
import http.client
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus

from vault_client.answers import mapping
from vault_client.errors import ConfigError, VaultClientError
from vault_client.settings import HttpAddress

_JSON = "application/json"
_LARGEST_REQUEST_BYTES = 8192
_LARGEST_ANSWER_BYTES = 64 * 1024
_MAX_CONNECTIONS = 16
_READ_TIMEOUT_SECONDS = 5.0
_CLOSE_SECONDS = 1.0
_PROBE_TIMEOUT_SECONDS = 3.0


class NotReadyError(VaultClientError):
    """No set is in place, or the daemon does not answer."""


@dataclass(frozen=True, slots=True)
class Page:
    """What one path answers."""

    status: HTTPStatus
    content_type: str
    body: bytes


def json_page(fields: dict[str, str | int | bool | None], *, good: bool) -> Page:
    """Return the fields as JSON: 200 if all is well, else 503."""
    status = HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE
    return Page(status, _JSON, json.dumps(fields).encode() + b"\n")


async def serve(address: HttpAddress, pages: dict[str, Callable[[], Page]]) -> asyncio.Server:
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
            answer, address.host, address.port, limit=_LARGEST_REQUEST_BYTES
        )
    except OSError as error:
        raise ConfigError(
            f"HEALTH_ADDR {address.host}:{address.port} cannot be listened on: {error.strerror}",
            hint="choose a free port, or HEALTH_ADDR=off",
        ) from error


async def _close(writer: asyncio.StreamWriter) -> None:
    """Return when the connection is closed, cut where its client does not read."""
    writer.close()
    try:
        async with asyncio.timeout(_CLOSE_SECONDS):
            await writer.wait_closed()
    except OSError:  # a TimeoutError is one
        writer.transport.abort()


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pages: dict[str, Callable[[], Page]]
) -> None:
    with suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        async with asyncio.timeout(_READ_TIMEOUT_SECONDS):
            head = await reader.readuntil(b"\r\n\r\n")
            writer.write(_response(head, pages))
            await writer.drain()


def ask_ready(address: HttpAddress) -> str:
    """Return the state of the daemon at the address; NotReadyError if no set is in place."""
    try:
        connection = http.client.HTTPConnection(
            address.host, address.port, timeout=_PROBE_TIMEOUT_SECONDS
        )
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        fields = mapping(json.loads(response.read(_LARGEST_ANSWER_BYTES)))
        connection.close()
    except (OSError, ValueError, RecursionError, http.client.HTTPException) as error:
        raise NotReadyError(
            f"no answer from {address.host}:{address.port}: {type(error).__name__}",
            hint="is the daemon running, with the same HEALTH_ADDR?",
        ) from None
    state = fields.get("state")
    if response.status != HTTPStatus.OK or not isinstance(state, str):
        raise NotReadyError(
            f"state {state}: {fields.get('message') or 'nothing delivered yet'}",
            hint=str(fields.get("hint") or "see the daemon's log"),
        )
    return state


def _response(head: bytes, pages: dict[str, Callable[[], Page]]) -> bytes:
    method, _, rest = head.split(b"\r\n", 1)[0].decode("latin-1").partition(" ")
    target = rest.partition(" ")[0].partition("?")[0]
    if method not in {"GET", "HEAD"}:
        page = Page(HTTPStatus.METHOD_NOT_ALLOWED, _JSON, b"{}\n")
    elif target not in pages:
        page = Page(HTTPStatus.NOT_FOUND, _JSON, b"{}\n")
    else:
        page = pages[target]()
    lines = (
        f"HTTP/1.1 {page.status.value} {page.status.phrase}",
        f"Content-Type: {page.content_type}",
        f"Content-Length: {len(page.body)}",
        "Cache-Control: no-store",
        "Connection: close",
        "",
        "",
    )
    return "\r\n".join(lines).encode() + (b"" if method == "HEAD" else page.body)
