"""A value that does not show itself: no repr, no formatting, no pickling, no hash.

`wipe` overwrites the one buffer that this object owns. What `reveal` handed out, and the copies
that the TLS and JSON layers made before the value came here, are beyond its reach: Python frees
such memory without overwriting it.
"""

import hmac
from typing import NoReturn


class Secret:
    """Bytes that leave only through `reveal` or `view`."""

    __slots__ = ("_buffer",)

    def __init__(self, value: bytes | bytearray) -> None:
        self._buffer = bytearray(value)

    def reveal(self) -> bytes:
        """Return a copy of the value; keep it as briefly as possible."""
        return bytes(self._buffer)

    def view(self) -> memoryview:
        """Return the value itself, uncopied; release it before `wipe` is called."""
        return memoryview(self._buffer)

    def wipe(self) -> None:
        """Overwrite the value with zeros; what remains is as long and worthless."""
        self._buffer[:] = bytes(len(self._buffer))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._buffer, other._buffer)

    __hash__ = None  # type: ignore[assignment]  # a hash would be a digest without a key

    def __repr__(self) -> str:
        return "Secret(redacted)"

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a Secret is not serialised")
