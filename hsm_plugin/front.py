"""The front process: asks who connects, lets in who may, and pipes them to the gRPC server.

grpcio tells a Python server neither the credentials of a Unix socket's client nor lets it set
the least TLS version or take up new roots, so this process accepts the connections. Its own end
of each connection to the gRPC server is bound to an abstract address that says who the client
is: see hsm_plugin.callers and docs/adr/0006. It ends when its standard input is closed.
"""

import asyncio
import contextlib
import errno
import json
import logging
import secrets
import socket
import ssl
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine

from hsm_plugin import callers, child_process, core_dumps, log
from hsm_plugin.errors import ConfigError
from hsm_plugin.front_log import PacedLog
from hsm_plugin.front_pipe import Pipe
from hsm_plugin.front_settings import FrontSettings
from hsm_plugin.front_tls import TlsFiles, identity_of

_SO_PEERGROUPS = 59
_MAX_GROUPS = 256
_CREDENTIALS = struct.Struct("iII")
_ACCEPT_PAUSE_SECONDS = 0.1
_OUT_OF_DESCRIPTORS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_CONNECT_LIMIT_SECONDS = 5.0
_CONNECT_RETRY_SECONDS = 0.005
_RELOAD_SECONDS = 1.0
_SHUTDOWN_SECONDS = 1.0


class Front:
    """Accepts on the socket and on the port."""

    def __init__(self, settings: FrontSettings) -> None:
        """Load the TLS files; ConfigError when they cannot be served with."""
        self._settings = settings
        self._tls = TlsFiles(settings.tls) if settings.tls else None
        self._upstream = f"/proc/self/fd/{settings.upstream}"
        self._log = PacedLog()
        self._open: Counter[str] = Counter()
        """Connections by listener, by uid and by identity."""
        self._remote: set[asyncio.Transport] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Never returns; cancel it."""
        settings = self._settings
        async with asyncio.TaskGroup() as tasks:
            if settings.unix is not None:
                tasks.create_task(self._accept(settings.unix, "unix", self._take_local))
            if settings.tcp is not None:
                tasks.create_task(self._accept(settings.tcp, "tcp", self._take_remote))
            if self._tls is not None:
                tasks.create_task(self._keep_tls(self._tls))

    async def _accept(
        self, descriptor: int, kind: str, take: Callable[[socket.socket], None]
    ) -> None:
        loop = asyncio.get_running_loop()
        listener = socket.socket(fileno=descriptor)
        listener.settimeout(0)
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:
                is_out = error.errno in _OUT_OF_DESCRIPTORS
                if is_out:
                    self._refuse("out of descriptors or memory", via=kind)
                await asyncio.sleep(_ACCEPT_PAUSE_SECONDS if is_out else 0)
                continue
            if self._open[kind] >= self._settings.limits.connections:
                self._refuse("too many connections", via=kind)
                connection.close()
            else:
                self._open[kind] += 1
                take(connection)
            await asyncio.sleep(0)  # a flood of connections must not stop the others' bytes

    # -- local clients -------------------------------------------------------------------

    def _take_local(self, connection: socket.socket) -> None:
        pid, uid, gid = _CREDENTIALS.unpack(
            connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
        who = {"pid": pid, "uid": uid, "gid": gid}
        each = f"uid {uid}"
        if not self._settings.allow.admits(uid, _groups(connection) | {gid}):
            reason = "neither its uid nor a group of it is allowed"
        elif self._open[each] >= self._settings.limits.connections_each:
            reason = "this uid has too many connections"
        else:
            self._open[each] += 1
            self._admit("local", **who)
            address = callers.local_address(
                self._settings.tag, secrets.token_hex(8), pid=pid, uid=uid, gid=gid
            )
            self._start(self._pipe_local(connection, address, each))
            return
        self._refuse(reason, **who)  # first, so that who sees the end finds the reason
        connection.close()
        self._open["unix"] -= 1

    async def _pipe_local(self, connection: socket.socket, address: str, each: str) -> None:
        await asyncio.get_running_loop().connect_accepted_socket(
            lambda: Pipe(
                lambda pipe: self._start(self._join(pipe, address)),
                lambda: self._open.subtract(("unix", each)),
            ),
            connection,
        )

    # -- remote clients ------------------------------------------------------------------

    def _take_remote(self, connection: socket.socket) -> None:
        try:
            address = str(connection.getpeername()[0])
        except OSError:
            address = "left already"
        if self._open[f"from {address}"] < self._settings.limits.handshakes_each:
            self._open[f"from {address}"] += 1
            self._start(self._handshake(connection, address))
        else:
            self._refuse("too many handshakes of one address", via="tcp", address=address)
            connection.close()
            self._open["tcp"] -= 1

    async def _handshake(self, connection: socket.socket, address: str) -> None:
        assert self._tls is not None  # noqa: S101 - there is no port without
        opened: list[Pipe] = []

        def lost() -> None:
            self._open["tcp"] -= 1

        try:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: Pipe(opened.append, lost),
                connection,
                ssl=self._tls.context,
                ssl_handshake_timeout=self._settings.limits.handshake_seconds,
                ssl_shutdown_timeout=_SHUTDOWN_SECONDS,
            )
        except (OSError, ssl.SSLError) as error:
            connection.close()
            if not opened:
                self._open["tcp"] -= 1
            reason = getattr(error, "reason", None) or type(error).__name__
            self._refuse(reason, via="tcp", address=address)
            return
        finally:
            self._open[f"from {address}"] -= 1
            if not self._open[f"from {address}"]:
                del self._open[f"from {address}"]
        await self._admit_remote(opened[0])

    async def _admit_remote(self, pipe: Pipe) -> None:
        """Join a client whose certificate was verified to the server, if it may."""
        tls = self._settings.tls
        assert tls is not None  # noqa: S101 - there is no port without
        session = pipe.transport.get_extra_info("ssl_object")
        certificate = session.getpeercert() or {}
        index = identity_of(certificate, tls.allow)
        if index is None:
            self._refuse("no name of its certificate is allowed", names=_names(certificate))
        elif session.selected_alpn_protocol() != "h2":
            self._refuse("it does not speak HTTP/2", identity=tls.allow[index])
        elif self._open[f"as {tls.allow[index]}"] >= self._settings.limits.connections_each:
            self._refuse("this identity has too many connections", identity=tls.allow[index])
        else:
            self._admit("remote", identity=tls.allow[index])
            await self._join_remote(pipe, index, certificate)
            return
        pipe.transport.abort()

    async def _join_remote(self, pipe: Pipe, index: int, certificate: dict[str, object]) -> None:
        """Pipe until one side ends, the certificate expires or the clients' roots change."""
        assert self._settings.tls is not None  # noqa: S101 - there is no port without
        transport, identity = pipe.transport, self._settings.tls.allow[index]
        until = ssl.cert_time_to_seconds(str(certificate["notAfter"])) - time.time()
        self._open[f"as {identity}"] += 1
        self._remote.add(transport)
        expiry = asyncio.get_running_loop().call_later(until, transport.abort)

        def ended() -> None:
            expiry.cancel()
            self._remote.discard(transport)
            self._open[f"as {identity}"] -= 1

        pipe.when_closed(ended)
        address = callers.remote_address(self._settings.tag, secrets.token_hex(8), index)
        await self._join(pipe, address)

    async def _keep_tls(self, tls: TlsFiles) -> None:
        """Load changed files; end the connections that roots opened which may be gone."""
        while True:
            await asyncio.sleep(_RELOAD_SECONDS)
            try:
                changed = tls.reload()
            except ConfigError as error:
                log.event(
                    "tls.refused",
                    f"The TLS files changed and cannot be used; the old ones stay: {error}",
                    level=logging.ERROR,
                    hint=error.hint,
                )
                continue
            if changed is None:
                continue
            if changed:
                for transport in list(self._remote):
                    transport.abort()
            log.event("tls.loaded", "The TLS files changed and are in use", roots_changed=changed)

    # -- both ----------------------------------------------------------------------------

    async def _join(self, pipe: Pipe, address: str) -> None:
        """Connect to the gRPC server under the address, and pipe."""
        upstream = socket.socket(socket.AF_UNIX)
        try:
            upstream.settimeout(0)
            upstream.bind(address)
            await self._connect(upstream)
        except OSError as error:
            self._refuse(f"the server does not take it: {error.strerror}")
            upstream.close()
            pipe.transport.abort()
            return
        _, other = await asyncio.get_running_loop().create_unix_connection(
            lambda: Pipe(lambda _: None, lambda: None), sock=upstream
        )
        pipe.join(other)

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

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _admit(self, kind: str, **who: object) -> None:
        self._log.event(
            "connection.admitted", f"A {kind} client connected", level=logging.INFO, **who
        )

    def _refuse(self, reason: str, **who: object) -> None:
        self._log.event(
            "connection.refused",
            f"A connection was refused: {reason}",
            level=logging.WARNING,
            **who,
        )


def _groups(connection: socket.socket) -> frozenset[int]:
    """Return the supplementary groups of the client; none where the kernel does not tell."""
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _MAX_GROUPS)
    except OSError:
        return frozenset()
    return frozenset(struct.unpack(f"{len(raw) // 4}I", raw))


def _names(certificate: dict[str, object]) -> str:
    """Return what a refused certificate calls its owner, cut to a log line's length."""
    found = {key: certificate.get(key) for key in ("subject", "subjectAltName")}
    return json.dumps(found)[:500]


async def _run(settings: FrontSettings) -> None:
    front = Front(settings)
    closing = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), closing.set)
    closed = asyncio.create_task(closing.wait())
    serving = asyncio.create_task(front.serve())
    sys.stdout.write("{}\n")
    sys.stdout.flush()
    await asyncio.wait({serving, closed}, return_when=asyncio.FIRST_COMPLETED)
    serving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await serving


def main(parent: int) -> None:
    """Serve until standard input is closed. Standard output has one line: `{}`, or an error."""
    child_process.bind_to_parent(parent)
    core_dumps.forbid()
    child_process.leave_signals_to_parent()
    settings = FrontSettings.from_line(sys.stdin.buffer.readline())
    log.setup(as_json=settings.as_json)
    try:
        asyncio.run(_run(settings))
    except ConfigError as error:
        sys.stdout.write(json.dumps({"error": str(error), "hint": error.hint}) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]))
