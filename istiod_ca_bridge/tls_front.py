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
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from istiod_ca_bridge.errors import BridgeError
from istiod_ca_bridge.log import EventLog
from istiod_ca_bridge.served_place import Accept
from istiod_ca_bridge.tls_pipe import TlsPipe, handshake

_BACKLOG = 1024
_CONNECT_RETRY_SECONDS = 0.005
_CONNECT_LIMIT_SECONDS = 5.0
_ACCEPT_PAUSE_SECONDS = 0.1
_REPORT_SECONDS = 10.0
_LEAVE_LOOK_SECONDS = 0.02
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

    silent_seconds: float = 15.0
    """So long after its last word a client's connection may go for another's sake."""

    handshake_seconds: float = 10.0
    shutdown_seconds: float = 2.0


class TlsFront:
    """Accepts TLS connections and pipes them to a Unix socket, each under a name of its own."""

    def __init__(
        self,
        upstream: Path,
        folder: Path,
        log: EventLog,
        limits: FrontLimits | None = None,
        accept: Accept | None = None,
    ) -> None:
        self._upstream = str(upstream)
        self._folder = folder
        self._log = log
        self._limits = limits or FrontLimits()
        self._accept = accept or _accept
        self._context: ssl.SSLContext | None = None
        self._rechecks = 0
        """How often roots were taken away."""

        self._peers: dict[str, Peer] = {}
        self._open: OrderedDict[_Connection, None] = OrderedDict()
        """That which was silent longest first."""

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
            self._rechecks += 1
            for connection in list(self._open):
                if connection.peer.certificate is not None:
                    connection.pipe.end()

    def peer(self, name: str) -> Peer | None:
        """Return who is behind a peer name that the gRPC server reports; None when unknown."""
        return self._peers.get(name)

    @property
    def connections(self) -> int:
        """How many connections are open, handshakes included."""
        return len(self._open) + self._handshakes

    async def serve(self, listener: socket.socket) -> None:
        """Accept until cancelled; connections that are open stay so until `close`."""
        listener.listen(_BACKLOG)
        listener.settimeout(0)
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    try:
                        accepted = await self._accept(listener, lambda: self.connections)
                    except OSError as error:
                        if error.errno in _OUT_OF_DESCRIPTORS:
                            self._refuse("out of descriptors or memory")
                            await asyncio.sleep(_ACCEPT_PAUSE_SECONDS)
                        continue
                    if self._context is None or not self._has_room():
                        accepted.close()
                        self._refuse("too many connections")
                        continue
                    self._handshakes += 1
                    tasks.create_task(self._open_pipe(accepted, self._context))
        finally:
            listener.close()

    async def leave(self, seconds: float) -> None:
        """Have every client ask elsewhere; return when all are gone, or so much later."""
        for connection in list(self._open):
            connection.pipe.leave()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._open:  # noqa: ASYNC110 - on the fast path nobody need be told
                    await asyncio.sleep(_LEAVE_LOOK_SECONDS)

    def close(self) -> None:
        """End every connection, after what is written already."""
        for connection in list(self._open):
            connection.pipe.end()

    def _has_room(self) -> bool:
        """Return whether one more may come; if need be, one in whose silence no call fits goes."""
        if self.connections < self._limits.connections:
            return True
        silent = next(iter(self._open), None)
        if silent is None or time.monotonic() - silent.heard < self._limits.silent_seconds:
            return False
        silent.pipe.close()
        return True

    async def _open_pipe(self, accepted: socket.socket, context: ssl.SSLContext) -> None:
        """Agree on TLS, connect to the gRPC server, and have the two piped."""
        rechecks = self._rechecks
        with contextlib.ExitStack() as undo:
            undo.callback(self._handshake_is_over)
            undo.callback(accepted.close)  # nothing once TLS has the descriptor
            try:
                client = undo.enter_context(_tls(accepted, context))
                await handshake(client, self._limits.handshake_seconds)
                if client.selected_alpn_protocol() != "h2":
                    return
                peer = Peer(client.getpeercert(binary_form=True))
                name, upstream = await self._connect_upstream(peer)
            except (OSError, ValueError) as error:  # so are ssl.SSLError and TimeoutError
                self._refuse(getattr(error, "reason", None) or type(error).__name__)
                return
            undo.pop_all()
        self._handshake_is_over()
        connection = _Connection(peer)
        self._open[connection] = None

        def heard() -> None:
            connection.heard = time.monotonic()
            self._open.move_to_end(connection)

        def forget() -> None:
            del self._open[connection]
            self._peers.pop(name, None)

        connection.pipe = TlsPipe(client, upstream, heard, forget, self._limits.shutdown_seconds)
        if peer.certificate is not None and rechecks != self._rechecks:
            connection.pipe.end()

    def _handshake_is_over(self) -> None:
        self._handshakes -= 1

    def _refuse(self, reason: str) -> None:
        """Count a refusal; tell of them at most every few seconds, for anyone can cause them."""
        self._refused += 1
        if time.monotonic() - self._reported >= _REPORT_SECONDS:
            self._reported = time.monotonic()
            self._log.warning("connection.refused", reason=str(reason), since_start=self._refused)

    async def _connect_upstream(self, peer: Peer) -> tuple[str, socket.socket]:
        """Return the peer name that a connection to the gRPC server has there, and it."""
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


@dataclass(eq=False, slots=True)
class _Connection:
    """A connection that is open."""

    peer: Peer
    pipe: TlsPipe = field(init=False)
    heard: float = field(init=False, default_factory=time.monotonic)
    """When the client last sent something, on the monotonic clock."""


async def _accept(listener: socket.socket, _connections: Callable[[], int]) -> socket.socket:
    accepted, _ = await asyncio.get_running_loop().sock_accept(listener)
    return accepted


def _tls(accepted: socket.socket, context: ssl.SSLContext) -> ssl.SSLSocket:
    accepted.settimeout(0)
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return context.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False)


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


def inherited(descriptor: int) -> socket.socket:
    """Return a socket that another process has bound, and that others listen on, too."""
    return socket.socket(fileno=descriptor)
