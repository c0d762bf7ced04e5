"""One pipe on real sockets: what is told at its end."""

import asyncio
import socket
import ssl
from pathlib import Path

from istiod_ca_bridge.tls_pipe import TlsPipe, handshake
from tests.integration.istiod_ca_bridge.test_tls_front import client_context, context_trusting
from tests.support import pki

SECONDS = 10.0


async def piped(folder: Path) -> tuple[TlsPipe, socket.socket, ssl.SSLSocket, asyncio.Event]:
    """Return a pipe, the server's far end, the client, and what is set when the pipe ended."""
    theirs, ours = socket.socketpair()
    server, far = socket.socketpair()
    for end in (theirs, server):
        end.settimeout(0)
    accepted = context_trusting(pki.root("Client Root")).wrap_socket(
        theirs, server_side=True, do_handshake_on_connect=False
    )
    ours.settimeout(SECONDS)
    connecting = asyncio.to_thread(client_context(folder).wrap_socket, ours)
    client, _ = await asyncio.gather(connecting, handshake(accepted, SECONDS))
    ended = asyncio.Event()
    return TlsPipe(accepted, server, lambda: None, ended.set, SECONDS), far, client, ended


async def test_what_the_server_said_last_arrives_before_the_end(tmp_path: Path) -> None:
    pipe, far, client, ended = await piped(tmp_path)
    far.sendall(b"this is why")
    pipe.end()
    assert await asyncio.to_thread(client.recv, 1 << 10) == b"this is why"
    assert await asyncio.to_thread(client.recv, 1 << 10) == b""
    client.close()
    async with asyncio.timeout(SECONDS):
        await ended.wait()
    far.close()


async def test_a_client_that_is_gone_ends_it_at_once_whatever_the_server_says(
    tmp_path: Path,
) -> None:
    pipe, far, client, ended = await piped(tmp_path)
    client.close()
    far.sendall(b"nobody hears this")
    pipe.end()
    async with asyncio.timeout(SECONDS):
        await ended.wait()
    far.close()
