"""The TLS front on real sockets, with an echo server behind it."""

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from istiod_ca_bridge.tls_context import server_context
from istiod_ca_bridge.tls_front import FrontLimits, Peer, TlsFront, bind
from tests.support import pki
from tests.unit.istiod_ca_bridge.doubles import recorded_log

SECONDS = 10.0
SERVER_ROOT = pki.root("Server Root")
SERVER = pki.leaf(SERVER_ROOT, "server")
ROOT = pki.root("Client Root")
NEXT_ROOT = pki.root("Next Client Root")


def pem_key(issued: pki.Issued) -> bytes:
    return issued.key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def context_trusting(*roots: pki.Issued) -> ssl.SSLContext:
    trusted = b"".join(root.pem for root in roots).decode()
    return server_context(SERVER.pem.decode(), pem_key(SERVER), trusted)


def client_context(
    folder: Path, client: pki.Issued | None = None, alpn: str = "h2"
) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=SERVER_ROOT.pem.decode())
    context.check_hostname = False
    context.set_alpn_protocols([alpn])
    if client is not None:
        path = folder / f"{client.certificate.serial_number}.pem"
        path.write_bytes(client.pem + pem_key(client))
        context.load_cert_chain(path)
    return context


@dataclass(slots=True)
class Running:
    """A front that listens, and what its upstream saw."""

    front: TlsFront
    port: int
    folder: Path
    seen: asyncio.Queue[Peer | None]
    lines: list[str]

    async def connect(
        self, client: pki.Issued | None = None, alpn: str = "h2"
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=client_context(self.folder, client, alpn)
        )

    async def echo(self, client: pki.Issued | None, data: bytes) -> bytes:
        reader, writer = await self.connect(client)
        writer.write(data)
        answer = await reader.readexactly(len(data))
        writer.close()
        return answer

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(SECONDS):
            while not condition():  # noqa: ASYNC110 - nothing here can set an event
                await asyncio.sleep(0.01)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def ended(reader: asyncio.StreamReader) -> None:
    """Return once the other end closed or reset the connection."""
    with suppress(ConnectionResetError):
        while await reader.read(1 << 16):
            pass


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()


@asynccontextmanager
async def running(
    folder: Path,
    limits: FrontLimits | None = None,
    handler: Callable[[asyncio.StreamReader, asyncio.StreamWriter], object] = echo,
) -> AsyncIterator[Running]:
    log, lines = recorded_log()
    sockets = folder / "sockets"
    sockets.mkdir()
    seen: asyncio.Queue[Peer | None] = asyncio.Queue()
    front = TlsFront(sockets / "up", sockets, log, limits)

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.put_nowait(front.peer(f"unix:{writer.get_extra_info('peername')}"))
        try:
            result = handler(reader, writer)
            if asyncio.iscoroutine(result):
                await result
        except OSError:
            writer.close()

    upstream = await asyncio.start_unix_server(served, sockets / "up")
    listener = bind("127.0.0.1", 0)
    front.use(context_trusting(ROOT), recheck_clients=False)
    task = asyncio.create_task(front.serve(listener))
    await asyncio.sleep(0)
    try:
        yield Running(front, listener.getsockname()[1], folder, seen, lines)
    finally:
        task.cancel()
        front.close()
        await asyncio.gather(task, return_exceptions=True)
        upstream.close()
        await upstream.wait_closed()


async def test_each_connection_is_known_by_its_own_certificate_or_none(tmp_path: Path) -> None:
    clients = [pki.leaf(ROOT, f"client {number}") for number in range(6)]
    async with running(tmp_path) as run:
        await asyncio.gather(
            *(run.echo(client, b"hello") for client in clients),
            *(run.echo(None, b"hello") for _ in range(3)),
        )
        peers = [run.seen.get_nowait() for _ in range(9)]

    certificates = [peer.certificate for peer in peers if peer is not None]
    assert sorted(filter(None, certificates)) == sorted(client.der for client in clients)
    assert certificates.count(None) == 3


async def test_a_certificate_that_does_not_chain_to_our_roots_is_refused(tmp_path: Path) -> None:
    forged = pki.with_broken_signature(pki.leaf(ROOT))
    foreign = pki.leaf(NEXT_ROOT)
    async with running(tmp_path) as run:
        for client in (forged, foreign):
            with pytest.raises((OSError, asyncio.IncompleteReadError)):
                await run.echo(client, b"hello")

        assert run.seen.empty()
        assert await run.echo(pki.leaf(ROOT), b"hello") == b"hello"


async def test_new_roots_hold_for_new_handshakes_and_end_what_the_old_ones_verified(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as run:
        old_reader, _ = await run.connect(pki.leaf(ROOT))
        plain_reader, plain_writer = await run.connect()
        await run.until(lambda: run.seen.qsize() == 2)

        run.front.use(context_trusting(NEXT_ROOT), recheck_clients=True)

        assert await old_reader.read() == b""
        plain_writer.write(b"still here")
        assert await plain_reader.readexactly(10) == b"still here"
        plain_writer.close()
        assert await run.echo(pki.leaf(NEXT_ROOT), b"hello") == b"hello"
        with pytest.raises((OSError, asyncio.IncompleteReadError)):
            await run.echo(pki.leaf(ROOT), b"hello")


async def test_many_bytes_come_through_unchanged_both_ways(tmp_path: Path) -> None:
    data = os.urandom(4 << 20)
    async with running(tmp_path) as run:
        reader, writer = await run.connect()
        writer.write(data)
        assert await reader.readexactly(len(data)) == data
        writer.close()


async def pour(writer: asyncio.StreamWriter) -> None:
    for _ in range(4096):
        writer.write(bytes(1 << 16))
        await writer.drain()


async def test_an_upstream_that_does_not_read_stops_the_client_instead_of_filling_memory(
    tmp_path: Path,
) -> None:
    release = asyncio.Event()

    async def stubborn(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        await release.wait()
        writer.close()

    async with running(tmp_path, handler=stubborn) as run:
        _, writer = await run.connect()
        await run.until(lambda: run.seen.qsize() == 1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pour(writer), 2)

        (connection,) = run.front._open
        assert connection.pipe.kept <= 64 << 10
        release.set()
        writer.transport.abort()


async def test_connections_over_the_cap_are_closed_and_others_go_on(tmp_path: Path) -> None:
    async with running(tmp_path, FrontLimits(connections=2)) as run:
        first = await run.connect()
        second = await run.connect()
        with pytest.raises(OSError):  # noqa: PT011 - reset or end of file, as the kernel likes
            await run.connect()

        first[1].close()
        await run.until(lambda: run.front.connections == 1)
        assert await run.echo(None, b"hello") == b"hello"
        second[1].close()

    assert "too many connections" in run.lines[0]


async def test_when_all_places_are_taken_the_one_that_was_silent_longest_makes_room(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, FrontLimits(connections=2, silent_seconds=1.5)) as run:
        first_reader, first = await run.connect()
        second_reader, second = await run.connect()
        for reader, writer in ((second_reader, second), (first_reader, first)):
            writer.write(b"hello")
            await reader.readexactly(5)
        with pytest.raises(OSError):  # noqa: PT011 - reset or end of file, as the kernel likes
            await run.connect()
        await asyncio.sleep(1.5)

        assert await run.echo(None, b"hello") == b"hello"

        await ended(second_reader)
        first.write(b"still here")
        assert await first_reader.readexactly(10) == b"still here"
        first.close()
        second.close()


async def test_a_client_that_never_finishes_its_handshake_is_closed(tmp_path: Path) -> None:
    async with running(tmp_path, FrontLimits(handshake_seconds=0.2)) as run:
        reader, writer = await asyncio.open_connection("127.0.0.1", run.port)
        writer.write(b"\x16\x03\x01")
        async with asyncio.timeout(SECONDS):
            await ended(reader)
        await run.until(lambda: run.front.connections == 0)
        writer.close()


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", bytes(300), b"\xff" * 70_000])
async def test_what_is_no_tls_is_closed_and_others_go_on(tmp_path: Path, garbage: bytes) -> None:
    async with running(tmp_path) as run:
        reader, writer = await asyncio.open_connection("127.0.0.1", run.port)
        writer.write(garbage)
        async with asyncio.timeout(SECONDS):
            await ended(reader)
        writer.close()

        assert await run.echo(None, b"hello") == b"hello"


async def test_a_client_without_http_2_is_closed(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        reader, writer = await run.connect(alpn="http/1.1")
        await ended(reader)
        writer.close()

        assert run.seen.empty()


async def test_nothing_of_a_closed_connection_stays(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        await run.echo(None, b"warm up")
        await run.until(lambda: run.front.connections == 0)
        before = open_files()

        await asyncio.gather(*(run.echo(pki.leaf(ROOT), b"hello") for _ in range(20)))
        await run.until(lambda: run.front.connections == 0)

        assert run.front._peers == {}
        await run.until(lambda: open_files() <= before)
        assert os.listdir(tmp_path / "sockets") == ["up"]  # noqa: PTH208 - names are asserted


async def test_an_upstream_that_is_gone_closes_the_client_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as run:
        os.unlink(tmp_path / "sockets" / "up")  # noqa: PTH108 - once
        with pytest.raises((OSError, asyncio.IncompleteReadError)):
            await run.echo(None, b"hello")
        await run.until(lambda: run.front.connections == 0)

        assert run.front._peers == {}


def test_a_bound_socket_refuses_connections_until_the_front_serves() -> None:
    bound = bind("127.0.0.1", 0)

    with bound, pytest.raises(ConnectionRefusedError):
        socket.create_connection(bound.getsockname(), timeout=5)
