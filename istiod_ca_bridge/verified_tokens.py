"""Tokens whose signature was verified already, by a keyed digest: never a token itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import jwt

from istiod_ca_bridge.token_digest import TokenDigest

T = TypeVar("T")

_CAPACITY = 20_000


@dataclass(frozen=True, slots=True)
class _Remembered(Generic[T]):
    key: jwt.PyJWK
    expires: float
    fact: T


class VerifiedTokens(Generic[T]):
    """Remembers what accepted tokens say, for as long as their key is trusted and they live."""

    def __init__(self, capacity: int = _CAPACITY) -> None:
        self._capacity = capacity
        self._digest = TokenDigest()
        self._remembered: dict[bytes, _Remembered[T]] = {}

    def __len__(self) -> int:
        return len(self._remembered)

    def digest(self, token: str) -> bytes:
        """Return what the token is known by here."""
        return self._digest.of(token)

    def find(self, digest: bytes, trusted: Mapping[str, jwt.PyJWK], now: float) -> T | None:
        """Return what the token says, while the very key that verified it is still trusted."""
        found = self._remembered.get(digest)
        if found is None:
            return None
        if now < found.expires and trusted.get(found.key.key_id or "") is found.key:
            return found.fact
        del self._remembered[digest]
        return None

    def note(self, digest: bytes, key: jwt.PyJWK, expires: float, fact: T) -> None:
        """Remember it; of too many, those that were learnt first are forgotten."""
        if len(self._remembered) >= self._capacity:
            del self._remembered[next(iter(self._remembered))]
        self._remembered[digest] = _Remembered(key, expires, fact)
