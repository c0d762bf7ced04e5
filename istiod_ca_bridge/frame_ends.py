"""Where the frames of an HTTP/2 connection end, and the frame that sends a client elsewhere."""

_HEADER_BYTES = 9
_LENGTH_BYTES = 3

GOAWAY = (
    bytes.fromhex("000008070000000000")  # 8 bytes, of this type, no flags, no stream
    + bytes.fromhex("7fffffff00000000")  # whatever was begun is answered; no error
)
"""A client that reads it begins nothing more here, waits for what it has asked, and closes
(RFC 9113, section 6.8). It names the highest stream there can be, so nothing that is on its way
is lost; the server may name a lower one later."""


class FrameEnds:
    """Follows what a server sends, from its first byte on."""

    def __init__(self) -> None:
        self._header = b""
        """As much of a frame's header as there is."""

        self._payload_left = 0
        self._frames = 0

    @property
    def is_between(self) -> bool:
        """Whether a frame may be put here: after the first, which is the server's settings."""
        return self._frames > 0 and not self._header and not self._payload_left

    def follow(self, data: bytes) -> int:
        """Return where in the data its last frame ends; 0 when none does."""
        at, end, size = 0, 0, len(data)
        while at < size:
            if self._payload_left:
                taken = min(self._payload_left, size - at)
                self._payload_left -= taken
                at += taken
            else:
                taken = min(_HEADER_BYTES - len(self._header), size - at)
                self._header += data[at : at + taken]
                at += taken
                if len(self._header) < _HEADER_BYTES:
                    break
                self._payload_left = int.from_bytes(self._header[:_LENGTH_BYTES], "big")
                self._header = b""
            if not self._payload_left:
                self._frames += 1
                end = at
        return end
