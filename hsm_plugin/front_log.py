"""The front's log of connections: at a bounded rate, for anyone can cause such lines."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from hsm_plugin.log import event

_LINES = 20
_SECONDS = 10.0
_KINDS = 100
"""Kinds of lines that are paced apart; all further ones are one kind."""


@dataclass(slots=True)
class _Kind:
    since: float
    lines: int = 0
    left_out: int = 0


class PacedLog:
    """Of each message at most 20 lines in ten seconds; the next says how many were left out."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kinds: dict[str, _Kind] = {}

    def event(self, name: str, message: str, *, level: int, **fields: object) -> None:
        """Log the event, or count it as left out."""
        now = self._clock()
        key = message if len(self._kinds) < _KINDS or message in self._kinds else ""
        kind = self._kinds.setdefault(key, _Kind(now))
        if now - kind.since >= _SECONDS:
            kind.since, kind.lines = now, 0
        if kind.lines >= _LINES:
            kind.left_out += 1
            return
        kind.lines += 1
        if kind.left_out:
            fields["left_out"], kind.left_out = kind.left_out, 0
        event(name, message, level=level, **fields)
