"""Two ends become one connection, and who watches it learns of its end, however early it came."""

import asyncio
import socket
from collections.abc import Callable

from hsm_plugin.front_pipe import Pipe


async def end_of(connection: socket.socket, on_close: Callable[[], None]) -> Pipe:
    """Return the pipe's end on this side of a connection."""
    _, pipe = await asyncio.get_running_loop().connect_accepted_socket(
        lambda: Pipe(lambda _: None, on_close), connection
    )
    return pipe


async def joined() -> tuple[socket.socket, socket.socket, list[str]]:
    """Return the client's and the server's socket of a piped connection, and what has ended."""
    client, outer = socket.socketpair()
    server, inner = socket.socketpair()
    ended: list[str] = []
    near = await end_of(outer, lambda: ended.append("client"))
    far = await end_of(inner, lambda: ended.append("server"))
    near.join(far)
    for end in (client, server):
        end.settimeout(0)
    return client, server, ended


async def test_bytes_pass_both_ways_and_in_order() -> None:
    client, server, _ = await joined()
    loop = asyncio.get_running_loop()
    sent = bytes(range(256)) * 8192
    for here, there in ((client, server), (server, client)):
        sending = asyncio.create_task(loop.sock_sendall(here, sent))
        received = b""
        while len(received) < len(sent):
            received += await loop.sock_recv(there, 1 << 16)
        await sending
        assert received == sent


async def test_a_side_that_does_not_read_stops_the_other() -> None:
    client, server, _ = await joined()
    sent = 0
    quiet = 0
    while quiet < 20:
        try:
            sent += client.send(bytes(1 << 16))
            quiet = 0
        except BlockingIOError:
            quiet += 1
            await asyncio.sleep(0.005)
    assert sent < 16 << 20
    server.close()


async def test_the_end_of_one_side_is_the_end_of_the_other() -> None:
    for closing in (0, 1):
        *ends, ended = await joined()
        ends[closing].close()
        assert await asyncio.get_running_loop().sock_recv(ends[1 - closing], 1) == b""
        assert sorted(ended) == ["client", "server"]


async def test_who_asks_after_the_end_is_told_at_once() -> None:
    client, outer = socket.socketpair()
    ended = asyncio.Event()
    pipe = await end_of(outer, ended.set)
    pipe.transport.resume_reading()
    client.close()
    await ended.wait()
    told: list[str] = []
    pipe.when_closed(lambda: told.append("ended"))
    assert told == ["ended"]
    server, inner = socket.socketpair()
    far = await end_of(inner, lambda: None)
    pipe.join(far)
    server.settimeout(0)
    assert await asyncio.get_running_loop().sock_recv(server, 1) == b""
