"""Two connections made one: what comes in here goes out there, no faster than it is taken."""

import asyncio
from collections.abc import Callable


class Pipe(asyncio.Protocol):
    """One end of a piped connection. Each end stops reading while the other cannot write."""

    def __init__(self, on_open: Callable[["Pipe"], None], on_close: Callable[[], None]) -> None:
        self._on_open = on_open
        self._on_close = [on_close]
        self._is_lost = False
        self._other: asyncio.Transport | None = None
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Hold back what the client sends until there is somewhere to send it."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - what asyncio passes
        self.transport = transport
        transport.pause_reading()
        self._on_open(self)

    def join(self, other: "Pipe") -> None:
        """Begin to pipe both ways."""
        self._other, other._other = other.transport, self.transport  # noqa: SLF001 - its twin
        for transport in (self.transport, other.transport):
            if transport.is_closing():
                self.transport.close()
                other.transport.close()
                return
        self.transport.resume_reading()
        other.transport.resume_reading()

    def when_closed(self, told: Callable[[], None]) -> None:
        """Have this called too when the connection is lost, or now when it is lost already."""
        if self._is_lost:
            told()
        else:
            self._on_close.append(told)

    def data_received(self, data: bytes) -> None:
        """Pass it on."""
        if self._other is not None:
            self._other.write(data)

    def pause_writing(self) -> None:
        """Stop the other end."""
        if self._other is not None and not self._other.is_closing():
            self._other.pause_reading()

    def resume_writing(self) -> None:
        """Let the other end go on."""
        if self._other is not None and not self._other.is_closing():
            self._other.resume_reading()

    def connection_lost(self, _error: Exception | None) -> None:
        """End the other end too, after what is written already."""
        if self._other is not None:
            self._other.close()
        self._is_lost = True
        for told in self._on_close:
            told()
