"""How long the PKCS#11 module's functions took, counted so cheaply that every call is counted.

Each thread counts for itself, without a lock; whoever asks adds the threads up.
"""

import threading
from bisect import bisect_left
from dataclasses import dataclass, field

BOUNDS = (
    *(0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25),
    *(0.5, 1.0, 2.5, 5.0, 10.0),
)
"""Upper bounds of the buckets, in seconds; a last bucket has none."""


@dataclass(slots=True)
class Tally:
    """The calls of one function."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    """By bucket, not cumulative."""
    seconds: float = 0.0
    failures: dict[str, int] = field(default_factory=dict)
    """By the name of the return value, CKR_OK not among them."""

    def add(self, other: "Tally") -> None:
        """Take the other's calls in."""
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.seconds += other.seconds
        for code, count in other.failures.items():
            self.failures[code] = self.failures.get(code, 0) + count


class CallTimes:
    """The tallies of one module, filled by many threads."""

    def __init__(self) -> None:
        self._mine = threading.local()
        self._all: list[dict[str, Tally]] = []

    def note(self, function: str, seconds: float, failure: str = "") -> None:
        """Count one call of this thread. `failure`: the name of its return value."""
        try:
            tallies: dict[str, Tally] = self._mine.tallies
        except AttributeError:
            tallies = self._mine.tallies = {}
            self._all.append(tallies)
        tally = tallies.get(function)
        if tally is None:
            tally = tallies[function] = Tally()
        tally.counts[bisect_left(BOUNDS, seconds)] += 1
        tally.seconds += seconds
        if failure:
            tally.failures[failure] = tally.failures.get(failure, 0) + 1

    def total(self) -> dict[str, Tally]:
        """Return the calls of all threads since the process began."""
        total: dict[str, Tally] = {}
        for tallies in list(self._all):
            for function, tally in list(tallies.items()):
                total.setdefault(function, Tally()).add(tally)
        return total
