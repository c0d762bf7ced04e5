"""An HTTP/2 client that does as it is told, sound or not (RFC 9113): frames over one socket."""

import contextlib
import select
import socket
import ssl
import struct
from collections import Counter
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SECONDS = 10.0
END_STREAM, END_HEADERS, ACK = 0x1, 0x4, 0x1
MAX_CONCURRENT_STREAMS, MAX_HEADER_LIST_SIZE = 0x3, 0x6


class Frame(IntEnum):
    """Kinds of frames, RFC 9113, section 6."""

    DATA = 0x0
    HEADERS = 0x1
    RST_STREAM = 0x3
    SETTINGS = 0x4
    PING = 0x6
    GOAWAY = 0x7
    WINDOW_UPDATE = 0x8
    CONTINUATION = 0x9


@dataclass(slots=True)
class Connection:
    """One connection, its settings exchanged, and what the server has sent so far."""

    socket: socket.socket
    settings: dict[int, int] = field(default_factory=dict)
    seen: Counter[Frame] = field(default_factory=Counter)
    is_deaf: bool = False
    """The server takes no more bytes."""
    is_closed: bool = False
    goaway: int | None = None
    """The error code of the server's GOAWAY."""
    _buffer: bytearray = field(default_factory=bytearray)

    def send(self, kind: Frame, stream: int, payload: bytes = b"", flags: int = 0) -> None:
        """Send a frame; nothing once the server has hung up."""
        self.send_raw(frame(kind, stream, payload, flags))

    def send_raw(self, data: bytes) -> None:
        """Send bytes; nothing once the server takes none. What it said before is still read."""
        if self.is_deaf:
            return
        try:
            self.socket.sendall(data)
        except OSError:
            self.is_deaf = True

    def open_stream(self, stream: int, method: str, *headers: tuple[str, str]) -> None:
        """Open a call and send no message."""
        self.send(Frame.HEADERS, stream, header_block(method, *headers), END_HEADERS)

    def read(self, seconds: float = _SECONDS) -> bool:
        """Take in what comes within the time; False when nothing came or all is over."""
        pending = self.socket.pending() if isinstance(self.socket, ssl.SSLSocket) else 0
        if self.is_closed or not (pending or select.select([self.socket], [], [], seconds)[0]):
            return False
        try:
            data = self.socket.recv(1 << 16)
        except OSError:
            data = b""
        self.is_closed = not data
        self._buffer += data
        while len(self._buffer) >= 9:
            length = int.from_bytes(self._buffer[:3])
            if len(self._buffer) < 9 + length:
                break
            self._take(Frame(self._buffer[3]), self._buffer[4], bytes(self._buffer[9 : 9 + length]))
            del self._buffer[: 9 + length]
        return not self.is_closed

    def read_until_closed(self) -> None:
        """Return once the server has hung up; TimeoutError otherwise."""
        while not self.is_closed:
            if not self.read() and not self.is_closed:
                raise TimeoutError("the server did not hang up")

    def _take(self, kind: Frame, flags: int, payload: bytes) -> None:
        self.seen[kind] += 1
        if kind is Frame.GOAWAY:
            self.goaway = int.from_bytes(payload[4:8])
        elif kind is Frame.SETTINGS and not flags & ACK:
            self.settings |= dict(struct.iter_unpack(">HI", payload))

    def close(self) -> None:
        """Hang up."""
        with contextlib.suppress(OSError):
            self.socket.close()


def frame(kind: Frame, stream: int, payload: bytes = b"", flags: int = 0) -> bytes:
    """Return the bytes of a frame."""
    head = len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4)
    return head + payload


def header_block(method: str, *headers: tuple[str, str]) -> bytes:
    """Return the headers of a gRPC call, every one a literal (RFC 7541, section 6.2.2)."""
    usual = (
        *((":method", "POST"), (":scheme", "http"), (":path", method), (":authority", "localhost")),
        *(("content-type", "application/grpc"), ("te", "trailers")),
    )
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in (*usual, *headers))


def _text(text: str) -> bytes:
    data = text.encode()
    if len(data) < 127:
        return bytes((len(data),)) + data
    rest, length = len(data) - 127, bytearray(b"\x7f")
    while rest >= 128:
        length.append(rest % 128 + 128)
        rest //= 128
    return bytes(length) + bytes((rest,)) + data


def connect(
    address: Path | tuple[str, int], *, tls: ssl.SSLContext | None = None, greet: bool = True
) -> Connection:
    """Return a connection; `greet`: with preface and settings sent, and the server's read."""
    if isinstance(address, Path):
        plain = socket.socket(socket.AF_UNIX)
        plain.settimeout(_SECONDS)
        plain.connect(str(address))
    else:
        plain = socket.create_connection(address, _SECONDS)
    connection = Connection(tls.wrap_socket(plain, server_hostname="localhost") if tls else plain)
    if greet:
        connection.send_raw(_PREFACE + frame(Frame.SETTINGS, 0))
        while not connection.seen[Frame.SETTINGS] and connection.read():
            pass
        connection.send(Frame.SETTINGS, 0, flags=ACK)
    return connection
