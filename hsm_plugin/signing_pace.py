"""How a batch is cut into packets for the worker's threads: by how fast the token signs.

A token that signs in less than half a millisecond is faster from one thread, since the threads
wait for each other's turn in the interpreter; a slower one works, or travels, in parallel.
"""

import math

from hsm_plugin.keys import SignatureAlgorithm

SLOW_SECONDS = 0.0005
_SLOW_DIGESTS = 16
"""In a packet for a slow token, so that it is answered long before the hang limit."""
_WEIGHT = 0.2
"""Of the latest packet in the average."""


class SigningPace:
    """The average time of a signature for each algorithm, as the worker measured it."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._seconds: dict[SignatureAlgorithm, float] = {}

    def note(self, algorithm: SignatureAlgorithm, seconds: float) -> None:
        """Take the time of a signature into the average."""
        before = self._seconds.get(algorithm, seconds)
        self._seconds[algorithm] = before + _WEIGHT * (seconds - before)

    def packet_size(self, algorithm: SignatureAlgorithm, count: int) -> int:
        """Return how many of `count` digests go into one packet, at least one."""
        if self._seconds.get(algorithm, SLOW_SECONDS) < SLOW_SECONDS:
            return count
        return min(math.ceil(count / self._threads), _SLOW_DIGESTS)
