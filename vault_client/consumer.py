"""Whoever uses the files, and whether it has taken up the newest set.

The volume of the secrets is read-only to the consumer, so it answers in a file of its own, in a
directory that both share: `{"generation": "..2026_…", "accepted": true, "reason": ""}`.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

_LOOK_EVERY_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Answer:
    """The consumer's word on one generation."""

    given: bool
    accepted: bool
    reason: str | None = None


class CredentialConsumer(Protocol):
    """The process that the set is for."""

    def reload(self, generation: str) -> Answer:
        """Return its answer on this generation, or one that was not given in time."""


class FileConsumer:
    """A consumer that notices a new set by itself and answers in a file."""

    def __init__(self, path: Path, *, timeout_seconds: float) -> None:
        self._path = path
        self._timeout_seconds = timeout_seconds

    def reload(self, generation: str) -> Answer:
        """Return the answer on this generation, waiting for it no longer than the timeout."""
        ends = time.monotonic() + self._timeout_seconds
        while True:
            answer = self._read(generation)
            if answer is not None:
                return answer
            if time.monotonic() >= ends:
                return Answer(given=False, accepted=False)
            time.sleep(_LOOK_EVERY_SECONDS)

    def _read(self, generation: str) -> Answer | None:
        try:
            content = json.loads(self._path.read_bytes())
            if content["generation"] != generation:
                return None
            accepted = content["accepted"] is True
            return Answer(given=True, accepted=accepted, reason=str(content.get("reason") or ""))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
