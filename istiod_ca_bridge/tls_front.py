"""TLS in front of the gRPC server, so that a client certificate may come and need not.

grpcio can require client certificates or never ask for one; Istio's one caAddress needs both
kinds of callers. So TLS ends here, bytes are piped to the gRPC server on a private Unix socket,
and the socket's peer name tells the server which TLS connection a call came by (see
docs/adr/0003-tls-front.md).
"""

import asyncio
import contextlib
import errno
import itertools
import os
import socket
import ssl
import time
from dataclasses import dataclass
from pathlib import Path

from istiod_ca_bridge.errors import BridgeError
from istiod_ca_bridge.log import EventLog

_BACKLOG = 1024
_CONNECT_RETRY_SECONDS = 0.005
_CONNECT_LIMIT_SECONDS = 5.0
_ACCEPT_PAUSE_SECONDS = 0.1
_REPORT_SECONDS = 10.0
_OUT_OF_DESCRIPTORS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


@dataclass(frozen=True, slots=True)
class Peer:
    """The client end of a TLS connection."""

    certificate: bytes | None
    """DER; None when the client sent none. TLS verified its chain."""


@dataclass(frozen=True, slots=True)
class FrontLimits:
    """What hostile clients can cost."""

    connections: int = 4096
    """At once, handshakes included."""

    handshake_seconds: float = 10.0
    shutdown_seconds: float = 2.0


class TlsFront:
    """Accepts TLS connections and pipes them to a Unix socket, each under a name of its own."""

    def __init__(
        self, upstream: Path, folder: Path, log: EventLog, limits: FrontLimits | None = None
    ) -> None:
        self._upstream = str(upstream)
        self._folder = folder
        self._log = log
        self._limits = limits or FrontLimits()
        self._context: ssl.SSLContext | None = None
        self._peers: dict[str, Peer] = {}
        self._open: set[_ClientSide] = set()
        self._handshakes = 0
        self._numbers = itertools.count()
        self._refused = 0
        self._reported = -_REPORT_SECONDS

    def use(self, context: ssl.SSLContext, *, recheck_clients: bool) -> None:
        """Serve new handshakes with this context.

        `recheck_clients`: end the connections that a client certificate opened, because the
        roots that verified it may be gone; such a client connects again.
        """
        self._context = context
        if recheck_clients:
            for connection in list(self._open):
                connection.end_if_certified()

    def peer(self, name: str) -> Peer | None:
        """Return who is behind a peer name that the gRPC server reports; None when unknown."""
        return self._peers.get(name)

    @property
    def connections(self) -> int:
        """How many connections are open, handshakes included."""
        return len(self._open) + self._handshakes

    async def serve(self, listener: socket.socket) -> None:
        """Accept until cancelled; connections that are open stay so until `close`."""
        loop = asyncio.get_running_loop()
        listener.listen(_BACKLOG)
        listener.settimeout(0)
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    try:
                        connection, _ = await loop.sock_accept(listener)
                    except OSError as error:
                        if error.errno in _OUT_OF_DESCRIPTORS:
                            self.refuse("out of descriptors or memory")
                            await asyncio.sleep(_ACCEPT_PAUSE_SECONDS)
                        continue
                    if self._context is None or self.connections >= self._limits.connections:
                        connection.close()
                        self.refuse("too many connections")
                        continue
                    tasks.create_task(self._handshake(connection, self._context, tasks))
        finally:
            listener.close()

    def close(self) -> None:
        """End every connection, after what is written already."""
        for connection in list(self._open):
            connection.end()

    async def _handshake(
        self, connection: socket.socket, context: ssl.SSLContext, tasks: asyncio.TaskGroup
    ) -> None:
        self._handshakes += 1
        try:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: _ClientSide(self, tasks),
                connection,
                ssl=context,
                ssl_handshake_timeout=self._limits.handshake_seconds,
                ssl_shutdown_timeout=self._limits.shutdown_seconds,
            )
        except (OSError, ssl.SSLError, TimeoutError) as error:
            connection.close()
            self.refuse(getattr(error, "reason", None) or type(error).__name__)
        finally:
            self._handshakes -= 1

    def refuse(self, reason: str) -> None:
        """Count a refusal; tell of them at most every few seconds, for anyone can cause them."""
        self._refused += 1
        if time.monotonic() - self._reported >= _REPORT_SECONDS:
            self._reported = time.monotonic()
            self._log.warning("connection.refused", reason=str(reason), since_start=self._refused)

    # What the two sides of a connection call.

    def opened(self, side: "_ClientSide") -> None:
        """Count a connection whose handshake is done."""
        self._open.add(side)

    def closed(self, side: "_ClientSide", name: str) -> None:
        """Forget a connection and who was behind it."""
        self._open.discard(side)
        self._peers.pop(name, None)

    async def connect_upstream(self, peer: Peer) -> tuple[str, socket.socket]:
        """Return a connection to the gRPC server and the peer name it is known by there."""
        path = f"{self._folder}/{next(self._numbers):x}"
        name = f"unix:{path}"
        upstream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            upstream.settimeout(0)
            upstream.bind(path)
            self._peers[name] = peer
            try:
                await self._connect(upstream)
            finally:
                os.unlink(path)  # noqa: PTH108 - in memory, and on the fast path
        except BaseException:
            self._peers.pop(name, None)
            upstream.close()
            raise
        return name, upstream

    async def _connect(self, upstream: socket.socket) -> None:
        """Connect; a full backlog answers at once (unix(7), EAGAIN) and is waited out."""
        give_up = time.monotonic() + _CONNECT_LIMIT_SECONDS
        while True:
            try:
                upstream.connect(self._upstream)
            except BlockingIOError:
                if time.monotonic() > give_up:
                    raise
                await asyncio.sleep(_CONNECT_RETRY_SECONDS)
            else:
                return


class _ClientSide(asyncio.Protocol):
    """The TLS end of a connection."""

    def __init__(self, front: TlsFront, tasks: asyncio.TaskGroup) -> None:
        self._front = front
        self._tasks = tasks
        self._name = ""
        self._peer = Peer(None)
        self._transport: asyncio.Transport
        self._upstream: asyncio.Transport | None = None
        self._lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - what asyncio passes
        self._transport = transport
        self._front.opened(self)
        session = transport.get_extra_info("ssl_object")
        if session.selected_alpn_protocol() != "h2":
            transport.abort()
            return
        self._peer = Peer(session.getpeercert(binary_form=True))
        transport.pause_reading()
        self._tasks.create_task(self._connect())

    async def _connect(self) -> None:
        try:
            self._name, upstream = await self._front.connect_upstream(self._peer)
        except OSError as error:
            self._front.refuse(f"the gRPC server is not reached: {error.strerror}")
            self._transport.abort()
            return
        if self._lost:
            upstream.close()
            self._front.closed(self, self._name)
            return
        transport, _ = await asyncio.get_running_loop().create_unix_connection(
            lambda: _ServerSide(self._transport), sock=upstream
        )
        self._upstream = transport
        if self._transport.is_closing():
            transport.close()
        else:
            with contextlib.suppress(RuntimeError):
                self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self._upstream is not None:
            self._upstream.write(data)

    def pause_writing(self) -> None:
        if self._upstream is not None:
            self._upstream.pause_reading()

    def resume_writing(self) -> None:
        if self._upstream is not None and not self._upstream.is_closing():
            self._upstream.resume_reading()

    def connection_lost(self, _exc: Exception | None) -> None:
        self._lost = True
        if self._upstream is not None:
            self._upstream.close()
        self._front.closed(self, self._name)

    def end(self) -> None:
        """Close after what is written already."""
        self._transport.close()

    def end_if_certified(self) -> None:
        """Close when a client certificate opened the connection."""
        if self._peer.certificate is not None:
            self._transport.close()


class _ServerSide(asyncio.Protocol):
    """The gRPC server's end of a connection."""

    def __init__(self, client: asyncio.Transport) -> None:
        self._client = client
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - what asyncio passes
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._client.write(data)

    def pause_writing(self) -> None:
        self._client.pause_reading()

    def resume_writing(self) -> None:
        if not self._client.is_closing():
            self._client.resume_reading()

    def connection_lost(self, _exc: Exception | None) -> None:
        self._client.close()


def bind(host: str, port: int) -> socket.socket:
    """Return a bound socket that listens later; BridgeError when the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise BridgeError(
            f"cannot listen on {host}:{port}: {error.strerror}",
            hint="look at CA_LISTEN; is another process there?",
        ) from error
    return bound
