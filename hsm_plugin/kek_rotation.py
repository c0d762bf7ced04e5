"""Rotation of a KEK over whatever holds DEKs that it wraps, one after the other.

Each source is replaced whole or not at all, and one that is under the new KEK already is only
opened, so a rotation that ended early is finished by the same command.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from hsm_plugin import dek_document
from hsm_plugin.errors import BadRequestError, ConflictError, HsmPluginError

_TRIES = 5
"""For a source that others change at the same time."""

Rewrap = Callable[[bytes, bytes, bytes], tuple[bytes, bool]]
"""Old KEK id, new KEK id, blob -> blob under the new KEK, and whether that is new."""


class ChangedError(ConflictError):
    """The source does not hold any more what was read of it."""


class Source(Protocol):
    """A place that holds one wrapped DEK."""

    @property
    def name(self) -> str:
        """As messages show it."""

    def read(self) -> bytes:
        """Return the content, bounded; BadRequestError when it cannot be had."""

    def replace(self, old: bytes, new: bytes) -> None:
        """Replace the old content, whole; ChangedError when it is not the content any more."""


class Progress(Enum):
    """What came of a source."""

    REWRAPPED = "rewrapped"
    ALREADY = "already under the new KEK"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a source, and why it failed."""

    name: str
    progress: Progress
    error: HsmPluginError | None = None


def rotate(sources: Sequence[Source], old: bytes, new: bytes, rewrap: Rewrap) -> list[Outcome]:
    """Return an outcome for each source; one that fails does not keep the others from theirs."""
    outcomes = []
    for source in sources:
        try:
            outcomes.append(Outcome(source.name, _rotate(source, old, new, rewrap)))
        except HsmPluginError as error:
            outcomes.append(Outcome(source.name, Progress.FAILED, error))
    return outcomes


def _rotate(source: Source, old: bytes, new: bytes, rewrap: Rewrap) -> Progress:
    for _ in range(_TRIES):
        content = source.read()
        document = dek_document.read(content, source.name)
        blob, is_new = rewrap(old, new, document.blob)
        if not is_new:
            return Progress.ALREADY
        try:
            source.replace(content, document.with_dek(new, blob))
        except ChangedError:
            continue
        return Progress.REWRAPPED
    raise ConflictError(
        f"{source.name} is changed all the time by somebody else",
        hint="see who writes it, and run the same command again",
    )


def check_unused(sources: Sequence[Source], kek_id: bytes) -> None:
    """Return when none of the sources needs this KEK; ConflictError names those that do."""
    if not sources:
        raise BadRequestError(
            "nothing was named that the KEK could still wrap",
            hint="name every file and Secret that was rotated; they are looked through first",
        )
    needing = [
        source.name
        for source in sources
        if dek_document.read(source.read(), source.name).kek_id == kek_id
    ]
    if needing:
        raise ConflictError(
            f"the KEK is still needed by {', '.join(needing)}", hint="run rotate-kek on it first"
        )
