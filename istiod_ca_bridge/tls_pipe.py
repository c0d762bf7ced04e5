"""One connection's bytes, from TLS to a Unix socket and back, by what the kernel says is ready.

asyncio's own TLS passes each message through two memory buffers and four callbacks; here OpenSSL
reads and writes the connection itself. A side that does not take what it is sent stops the other:
no more than one read is ever kept.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable

from istiod_ca_bridge.frame_ends import GOAWAY, FrameEnds

_CHUNK = 64 << 10
_READS = 8
"""In a row for one connection, so that the others get their turn."""

_AGAIN = (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError, InterruptedError)


async def handshake(connection: ssl.SSLSocket, seconds: float) -> None:
    """Return when TLS is agreed on; OSError, which ssl.SSLError is, or TimeoutError when not."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(seconds):
        while True:
            try:
                connection.do_handshake()
            except ssl.SSLWantReadError:
                await _ready(connection, loop.add_reader, loop.remove_reader)
            except ssl.SSLWantWriteError:
                await _ready(connection, loop.add_writer, loop.remove_writer)
            else:
                return


async def _ready(
    connection: socket.socket,
    add: Callable[..., None],
    remove: Callable[[int], bool],
) -> None:
    ready = asyncio.Event()
    descriptor = connection.fileno()
    add(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        remove(descriptor)


class TlsPipe:
    """Pipes from now on until either side ends.

    Tells `heard` when the client sends something, and `ended` once.
    """

    def __init__(
        self,
        client: ssl.SSLSocket,
        server: socket.socket,
        heard: Callable[[], None],
        ended: Callable[[], None],
        shutdown_seconds: float,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._client = client
        self._server = server
        self._client_fd = client.fileno()
        self._server_fd = server.fileno()
        self._heard = heard
        self._ended = ended
        self._shutdown_seconds = shutdown_seconds
        self._to_client = b""
        self._to_server = b""
        self._sent_frames = FrameEnds()
        self._is_to_leave = False
        """The client is to be told so between two frames."""

        self._is_ending = False
        self._is_closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._loop.add_reader(self._client_fd, self._from_client)
        self._loop.add_reader(self._server_fd, self._from_server)
        # What came with the handshake is in OpenSSL already. Later: an end of it is told then.
        self._loop.call_soon(self._go_on_reading)

    @property
    def kept(self) -> int:
        """How many bytes are read from one side and not written to the other."""
        return len(self._to_client) + len(self._to_server)

    def leave(self) -> None:
        """Have the client ask elsewhere from now on, and close once it has its answers."""
        if self._is_ending or self._is_to_leave:
            return
        if not self._sent_frames.is_between:
            self._is_to_leave = True
        elif not self._send_to_client(self._to_client + GOAWAY):
            self._loop.remove_reader(self._server_fd)
            self._loop.add_writer(self._client_fd, self._client_takes)

    def end(self) -> None:
        """Close after what the server has said; a client that does not take it is soon left."""
        if self._is_ending:
            return
        self._is_ending = True
        if not self._to_client:
            self._from_server()  # what lies there, such as why it hangs up
        if self._is_closed:
            return
        self._loop.remove_reader(self._server_fd)
        self._loop.remove_writer(self._server_fd)
        self._server.close()
        self._to_server = b""
        self._timer = self._loop.call_later(self._shutdown_seconds, self.close)
        self._loop.add_reader(self._client_fd, self._from_client)
        if not self._to_client:
            self._say_goodbye()

    def close(self) -> None:
        """Close at once."""
        if self._is_closed:
            return
        self._is_closed = self._is_ending = True
        if self._timer is not None:
            self._timer.cancel()
        for end in (self._client, self._server):
            if end.fileno() >= 0:
                self._loop.remove_reader(end.fileno())
                self._loop.remove_writer(end.fileno())
                end.close()
        self._ended()

    def _from_client(self) -> None:
        for _ in range(_READS):
            try:
                data = self._client.recv(_CHUNK)
            except _AGAIN:
                return
            except OSError:
                data = b""
            if not data:
                self.close()
                return
            if self._is_ending:
                continue  # read, so that the kernel does not answer it with a reset
            self._heard()
            if not self._send_to_server(data):
                self._loop.remove_reader(self._client_fd)
                self._loop.add_writer(self._server_fd, self._server_takes)
                return
            if not self._client.pending():
                return
        self._loop.call_soon(self._go_on_reading)

    def _go_on_reading(self) -> None:
        """Read what OpenSSL has, of which the kernel does not tell again."""
        if not self._is_closed and not self._to_server:
            self._from_client()

    def _send_to_server(self, data: bytes) -> bool:
        """Return whether it took all; what it did not is kept."""
        try:
            sent = self._server.send(data)
        except _AGAIN:
            sent = 0
        except OSError:
            self.end()
            return True
        self._to_server = data[sent:]
        return not self._to_server

    def _server_takes(self) -> None:
        if self._send_to_server(self._to_server) and not self._is_ending:
            self._loop.remove_writer(self._server_fd)
            self._loop.add_reader(self._client_fd, self._from_client)
            self._from_client()

    def _from_server(self) -> None:
        try:
            data = self._server.recv(_CHUNK)
        except _AGAIN:
            return
        except OSError:
            data = b""
        if not data:
            self.end()
            return
        end = self._sent_frames.follow(data)
        if self._is_to_leave and end:
            self._is_to_leave = False
            data = data[:end] + GOAWAY + data[end:]
        if not self._send_to_client(data):
            self._loop.remove_reader(self._server_fd)
            self._loop.add_writer(self._client_fd, self._client_takes)

    def _send_to_client(self, data: bytes) -> bool:
        """Return whether it took all; what it did not is kept."""
        sent = 0
        try:
            while sent < len(data):
                sent += self._client.send(data[sent:] if sent else data)
        except _AGAIN:
            pass
        except OSError:
            self.close()
            return True
        self._to_client = data[sent:]
        return not self._to_client

    def _client_takes(self) -> None:
        if not self._send_to_client(self._to_client) or self._is_closed:
            return
        self._loop.remove_writer(self._client_fd)
        if self._is_ending:
            self._say_goodbye()
        else:
            self._loop.add_reader(self._server_fd, self._from_server)

    def _say_goodbye(self) -> None:
        """End our direction; the client's answer, or time, closes the connection."""
        with contextlib.suppress(OSError, ValueError):
            self._client.unwrap()
        with contextlib.suppress(OSError):
            self._client.shutdown(socket.SHUT_WR)
