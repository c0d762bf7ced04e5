"""The bridge's page of figures keeps no connection for a client that does not read."""

import asyncio
import contextlib
import socket

import pytest

from istiod_ca_bridge import metrics_endpoint as endpoint
from istiod_ca_bridge.setting_values import Address
from tests.support.ports import free_port


async def test_a_client_that_does_not_read_its_answer_is_hung_up_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(endpoint, "_SECONDS", 0.05)
    monkeypatch.setattr(endpoint, "_CLOSE_SECONDS", 0.05)
    size, port = 32 << 20, free_port()  # more than the kernel keeps for it

    async def figures() -> bytes:
        return bytes(size)

    async with endpoint.metrics_endpoint(Address("127.0.0.1", port), figures):
        deaf = socket.create_connection(("127.0.0.1", port))
        deaf.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
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
