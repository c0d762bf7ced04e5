"""Wrapped DEKs made ahead for the KEKs that are asked for right now, each given out once.

A KEK has a stock only while its DEKs are asked for again and again: the demand of a moment is what
came in the last tenth of a second or so, and the stock is as large as that. Nothing here is
secret: a DEK is in the clear in the worker alone, where it is made. No clock is read: it is
passed in.
"""

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

LIFE_SECONDS = 1.0
"""How long a DEK that was made ahead may be given out."""

MAX_DEKS = 128
"""Of one KEK."""

MAX_KEKS = 8
START_DEMAND = 5.0
"""So many calls nearly at once are the first reason for a stock: some 50 a second."""

_MEMORY_SECONDS = 0.1


@dataclass(slots=True)
class _Shelf:
    """The demand for one KEK's DEKs, and what is there."""

    demand: float = 0.0
    asked_at: float = 0.0
    deks: deque[tuple[float, bytes]] = field(default_factory=deque)
    """Until when, and the blob; the oldest first."""


class DekStock:
    """All KEKs' stocks. Lives on one event loop."""

    def __init__(self, now: Callable[[], float]) -> None:
        """`now`: a monotonic clock, in seconds."""
        self._now = now
        self._generation = 0
        self._shelves: OrderedDict[bytes, _Shelf] = OrderedDict()
        self._dropped: dict[bytes, int] = {}

    def begin(self) -> int:
        """Return what `put` is given: take it before DEKs are made."""
        return self._generation

    def ask(self, kek_id: bytes) -> None:
        """Count a call that was answered with a DEK of this KEK."""
        now, shelf = self._now(), self._shelves.get(kek_id)
        if shelf is None:
            shelf = self._shelves[kek_id] = _Shelf()
            if len(self._shelves) > MAX_KEKS:
                self._empty(*self._shelves.popitem(last=False))
        else:
            self._shelves.move_to_end(kek_id)
        shelf.demand = 1.0 + shelf.demand * math.exp((shelf.asked_at - now) / _MEMORY_SECONDS)
        shelf.asked_at = now

    def take(self, kek_id: bytes) -> bytes | None:
        """Return a DEK that nobody else gets, None when there is none."""
        shelf = self._shelves.get(kek_id)
        if shelf is None:
            return None
        self._expire(kek_id, shelf)
        return shelf.deks.popleft()[1] if shelf.deks else None

    def wanted(self, kek_id: bytes) -> int:
        """Return how many DEKs are to be made now; none while half of the stock is there."""
        shelf = self._shelves.get(kek_id)
        if shelf is None or shelf.demand < START_DEMAND:
            return 0
        size, there = min(int(shelf.demand), MAX_DEKS), len(shelf.deks)
        return size - there if there <= size // 2 else 0

    def put(self, kek_id: bytes, blobs: Sequence[bytes], begun: int) -> None:
        """Take DEKs that were made; dropped at once when all was cleared in the meantime."""
        shelf = self._shelves.get(kek_id) if begun == self._generation else None
        if shelf is None:
            self._drop(kek_id, len(blobs))
            return
        until = self._now() + LIFE_SECONDS
        shelf.deks.extend((until, blob) for blob in blobs)

    @property
    def count(self) -> int:
        """How many DEKs are there."""
        return sum(len(shelf.deks) for shelf in self._shelves.values())

    def expire(self) -> None:
        """Drop what is too old; to be called now and then when nobody asks."""
        for kek_id, shelf in self._shelves.items():
            self._expire(kek_id, shelf)

    def forget(self, kek_id: bytes) -> None:
        """Drop all of one KEK, and what is being made for it or for others."""
        self._generation += 1
        shelf = self._shelves.pop(kek_id, None)
        if shelf is not None:
            self._empty(kek_id, shelf)

    def clear(self) -> None:
        """Drop all, and what is being made now."""
        self._generation += 1
        while self._shelves:
            self._empty(*self._shelves.popitem())

    def dropped(self) -> Mapping[bytes, int]:
        """Return how many DEKs of each KEK were dropped unused since the last time."""
        dropped, self._dropped = self._dropped, {}
        return dropped

    def _expire(self, kek_id: bytes, shelf: _Shelf) -> None:
        now, deks = self._now(), shelf.deks
        while deks and deks[0][0] <= now:
            deks.popleft()
            self._drop(kek_id, 1)

    def _empty(self, kek_id: bytes, shelf: _Shelf) -> None:
        self._drop(kek_id, len(shelf.deks))
        shelf.deks.clear()

    def _drop(self, kek_id: bytes, count: int) -> None:
        if count:
            self._dropped[kek_id] = self._dropped.get(kek_id, 0) + count
