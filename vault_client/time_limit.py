"""The limit of a request in all, at whose end its connection is cut.

A socket's timeout bounds the gap between two bytes. Whoever drips bytes, before TLS is agreed on or
after, would hold a request for ever.
"""

import os
import socket
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool


class Exchange:
    """One request and its answer: handles of their connections, which TLS does not take over."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._handles: list[socket.socket] = []
        self._has_ended = False
        self.is_cut = False
        """Whether the time was over before the end."""

    def hold(self, opened: socket.socket) -> None:
        """Have a connection be cut with the others."""
        with self._lock:
            self._handles.append(socket.socket(fileno=os.dup(opened.fileno())))
            if self.is_cut:
                _shut(self._handles[-1])

    def cut(self) -> None:
        """Shut every connection down, unless the end came first."""
        with self._lock:
            self.is_cut = not self._has_ended
            for handle in self._handles:
                _shut(handle)

    def end(self) -> None:
        """Let go of the connections."""
        with self._lock:
            self._has_ended = True
            while self._handles:
                self._handles.pop().close()


@contextmanager
def limited(seconds: float) -> Iterator[Exchange]:
    """Cut what the exchange holds when so much time has passed inside."""
    exchange = Exchange()
    timer = threading.Timer(seconds, exchange.cut)
    timer.daemon = True
    timer.start()
    try:
        yield exchange
    finally:
        timer.cancel()
        exchange.end()


class TimeLimit:
    """The limit of a session's requests, of which one at a time is made."""

    def __init__(self, session: requests.Session, seconds: float) -> None:
        self._seconds = seconds
        self._connections: weakref.WeakSet[HTTPConnection] = weakref.WeakSet()
        self._now: Exchange | None = None
        self._mount(session)

    @contextmanager
    def running(self) -> Iterator[Exchange]:
        """Cut off the request that is made inside when its time is over."""
        with limited(self._seconds) as exchange:
            for connection in self._connections:  # those that were kept for the next request
                if connection.sock is not None and connection.sock.fileno() >= 0:
                    exchange.hold(connection.sock)
            self._now = exchange
            try:
                yield exchange
            finally:
                self._now = None

    def _mount(self, session: requests.Session) -> None:
        limit = self

        class Plain(HTTPConnection):
            def _new_conn(self) -> socket.socket:
                return limit._opened(self, super()._new_conn())

        class Encrypted(HTTPSConnection):
            def _new_conn(self) -> socket.socket:
                return limit._opened(self, super()._new_conn())

        class PlainPool(HTTPConnectionPool):
            ConnectionCls = Plain

        class EncryptedPool(HTTPSConnectionPool):
            ConnectionCls = Encrypted

        adapter = HTTPAdapter()
        adapter.poolmanager.pool_classes_by_scheme = {"http": PlainPool, "https": EncryptedPool}
        for scheme in ("http://", "https://"):
            session.mount(scheme, adapter)

    def _opened(self, connection: HTTPConnection, opened: socket.socket) -> socket.socket:
        self._connections.add(connection)
        if self._now is not None:
            self._now.hold(opened)
        return opened


def _shut(handle: socket.socket) -> None:
    with suppress(OSError):  # it was reset by the other side
        handle.shutdown(socket.SHUT_RDWR)
