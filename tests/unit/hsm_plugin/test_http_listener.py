"""The HTTP pages: right answers, and bounds for those who send anything else."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from http import HTTPStatus

import pytest

from hsm_plugin import http_listener
from hsm_plugin.errors import ConfigError
from hsm_plugin.http_listener import HttpAddress, Page


async def page() -> Page:
    return Page(HTTPStatus.OK, b"figures\n")


@pytest.fixture
async def port() -> AsyncIterator[int]:
    server = await http_listener.listen(HttpAddress("127.0.0.1", 0), {"/metrics": page})
    yield server.sockets[0].getsockname()[1]
    server.close()


async def asked(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    try:
        return await reader.read()
    finally:
        writer.close()


async def test_a_page_is_answered_with_its_length_and_the_connection_ends(port: int) -> None:
    answer = await asked(port, b"GET /metrics?x=1 HTTP/1.1\r\nHost: a\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Content-Length: 8" in head
    assert body == b"figures\n"


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET /other HTTP/1.1", b"404"),
        (b"POST /metrics HTTP/1.1", b"405"),
        (b"\xff\xfe nonsense", b"405"),
    ],
)
async def test_anything_else_is_refused(port: int, request_line: bytes, status: bytes) -> None:
    assert (await asked(port, request_line + b"\r\n\r\n")).split()[1] == status


async def test_head_has_no_body(port: int) -> None:
    assert (await asked(port, b"HEAD /metrics HTTP/1.1\r\n\r\n")).endswith(b"\r\n\r\n")


async def test_a_head_without_end_is_not_read_on(port: int) -> None:
    assert await asked(port, b"GET /metrics HTTP/1.1\r\nX: " + b"a" * 9000) == b""


async def test_a_connection_too_many_is_closed_and_room_comes_back(port: int) -> None:
    idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(16)]
    await asyncio.sleep(0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    assert await reader.read() == b""
    for _, each in (*idle, (reader, writer)):
        each.close()
    await asyncio.sleep(0.05)
    assert b"200 OK" in await asked(port, b"GET /metrics HTTP/1.1\r\n\r\n")


async def test_an_address_in_use_is_a_configuration_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = HttpAddress("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(ConfigError, match="METRICS_LISTEN"):
            await http_listener.listen(address, {})


async def test_a_client_that_does_not_read_its_answer_is_hung_up_on_and_makes_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_listener, "_SECONDS", 0.05)
    monkeypatch.setattr(http_listener, "_CLOSE_SECONDS", 0.05)
    size = 32 << 20  # more than the kernel keeps for it

    async def large() -> Page:
        return Page(HTTPStatus.OK, bytes(size))

    server = await http_listener.listen(HttpAddress("127.0.0.1", 0), {"/healthz": large})
    async with server:
        deaf = socket.create_connection(server.sockets[0].getsockname()[:2])
        deaf.sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
        await asyncio.sleep(0.3)
        deaf.settimeout(5)
        assert await asyncio.to_thread(received, deaf) < size
        deaf.close()


def received(connection: socket.socket) -> int:
    """Return how many bytes come until the end, an orderly one or not."""
    count = 0
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(1 << 20):
            count += len(piece)
    return count
