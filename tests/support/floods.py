"""What a hostile HTTP/2 client does to a gRPC server; each returns what the server made of it."""

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.support.http2 import (
    END_HEADERS,
    END_STREAM,
    MAX_CONCURRENT_STREAMS,
    Connection,
    Frame,
    frame,
    header_block,
)

Connect = Callable[[], Connection]
_CANCEL = struct.pack(">I", 8)


@contextmanager
def open_streams(connect: Connect, method: str, *, wanted: int) -> Iterator[list[Connection]]:
    """Connections that hold this many calls open, as many each as the server allows."""
    connections: list[Connection] = []
    left = wanted
    try:
        while left > 0:
            connection = connect()
            connections.append(connection)
            count = min(left, connection.settings[MAX_CONCURRENT_STREAMS])
            block = header_block(method)
            connection.send_raw(
                b"".join(
                    frame(Frame.HEADERS, 2 * number + 1, block, END_HEADERS)
                    for number in range(count)
                )
            )
            left -= count
        yield connections
    finally:
        for connection in connections:
            connection.close()


def pings(connection: Connection, count: int) -> Connection:
    """Send pings and nothing else."""
    for _ in range(count // 100):
        connection.send_raw(frame(Frame.PING, 0, bytes(8)) * 100)
        connection.read(0)
    return _drained(connection)


def rapid_resets(connection: Connection, method: str, count: int) -> Connection:
    """Open calls and reset each at once (CVE-2023-44487)."""
    block = header_block(method)
    for start in range(0, count, 100):
        connection.send_raw(
            b"".join(
                frame(Frame.HEADERS, 2 * number + 1, block, END_HEADERS | END_STREAM)
                + frame(Frame.RST_STREAM, 2 * number + 1, _CANCEL)
                for number in range(start, start + 100)
            )
        )
        connection.read(0)
    return _drained(connection)


def settings(connection: Connection, count: int) -> Connection:
    """Send settings over and over, each of which wants an acknowledgement."""
    for _ in range(count // 100):
        connection.send_raw(frame(Frame.SETTINGS, 0, struct.pack(">HI", 4, 65535)) * 100)
        connection.read(0)
    return _drained(connection)


def endless_headers(connection: Connection, method: str, size: int) -> Connection:
    """Send headers that never end (CVE-2024-24549 and its kin)."""
    connection.send(Frame.HEADERS, 1, header_block(method))
    piece = (b"\0\x01a\x7f\x81\x3e" + b"x" * 8128)[:8134]
    for _ in range(size // len(piece)):
        connection.send(Frame.CONTINUATION, 1, piece)
        connection.read(0)
    return _drained(connection)


def _drained(connection: Connection) -> Connection:
    while connection.read(0.5):
        pass
    return connection
