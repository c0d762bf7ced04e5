"""What a watch tells of named objects: all that there is, then each change."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Listing(Generic[T]):
    """All that there is now, by name."""

    contents: Mapping[str, T]


@dataclass(frozen=True, slots=True)
class Change(Generic[T]):
    """What one name has now; None: no more."""

    name: str
    content: T | None
