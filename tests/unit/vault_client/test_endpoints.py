"""The HTTP pages, and the probe's question: bounds for those who send anything else."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from http import HTTPStatus

import pytest

from vault_client import endpoints
from vault_client.endpoints import NotReadyError, Page, ask_ready, serve
from vault_client.settings import HttpAddress


@pytest.fixture
async def port() -> AsyncIterator[int]:
    pages = {
        "/readyz": lambda: Page(HTTPStatus.OK, "application/json", b"[]"),
        "/healthz": lambda: Page(HTTPStatus.OK, "application/json", b"{}"),
    }
    server = await serve(HttpAddress("127.0.0.1", 0), pages)
    yield server.sockets[0].getsockname()[1]
    server.close()


async def asked(port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /healthz HTTP/1.1\r\n\r\n")
    try:
        return await reader.read()
    finally:
        writer.close()


async def test_a_connection_too_many_is_closed_and_room_comes_back(port: int) -> None:
    idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(16)]
    await asyncio.sleep(0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    assert await reader.read() == b""
    for _, each in (*idle, (reader, writer)):
        each.close()
    await asyncio.sleep(0.05)
    assert b"200 OK" in await asked(port)


async def test_a_program_that_answers_something_else_is_not_taken_for_the_daemon(
    port: int,
) -> None:
    with pytest.raises(NotReadyError, match="state None"):
        await asyncio.to_thread(ask_ready, HttpAddress("127.0.0.1", port))


async def test_an_answer_that_is_no_json_is_no_readiness() -> None:
    pages = {"/readyz": lambda: Page(HTTPStatus.OK, "text/plain", b"[" * 100_000)}
    server = await serve(HttpAddress("127.0.0.1", 0), pages)
    port = server.sockets[0].getsockname()[1]
    async with server:
        with pytest.raises(NotReadyError, match="no answer from"):
            await asyncio.to_thread(ask_ready, HttpAddress("127.0.0.1", port))


async def test_a_client_that_does_not_read_its_answer_is_hung_up_on_and_makes_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(endpoints, "_READ_TIMEOUT_SECONDS", 0.05)
    monkeypatch.setattr(endpoints, "_CLOSE_SECONDS", 0.05)
    size = 32 << 20  # more than the kernel keeps for it
    pages = {"/healthz": lambda: Page(HTTPStatus.OK, "text/plain", bytes(size))}
    server = await serve(HttpAddress("127.0.0.1", 0), pages)
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
