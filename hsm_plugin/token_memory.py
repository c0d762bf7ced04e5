"""What the token told a while ago and need not tell again: unwrapped DEKs and imported roots.

An entry lives for a bounded time and all are forgotten when the token is lost, so that a token
that is gone stops its keys from being used. Nothing here reads a clock: it is passed in.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509

from hsm_plugin.envelope import Dek

DEK_SECONDS = 60.0
MAX_DEKS = 1024
ROOT_SECONDS = 10.0
"""Another plugin on the same token may import a root too."""
MAX_CHAINS = 256
_USUAL_BYTES = 1024

_Name = tuple[bytes, bytes, bool]


@dataclass(frozen=True, slots=True)
class Recollection:
    """The moment in which the token is asked; what was lost in the meantime is not kept."""

    generation: int


@dataclass(frozen=True, slots=True)
class Validity:
    """When every certificate of a verified path is valid, both ends included."""

    begin: datetime
    end: datetime


@dataclass(frozen=True, slots=True)
class _Kept:
    dek: Dek
    expires_at: float


class TokenMemory:
    """The DEKs and roots in use. Lives on one event loop."""

    def __init__(self, now: Callable[[], float], *, max_deks: int = MAX_DEKS) -> None:
        """`now`: a monotonic clock, in seconds."""
        self._now = now
        self._max_deks = max_deks
        self._generation = 0
        self._deks: OrderedDict[_Name, _Kept] = OrderedDict()
        self._roots: list[x509.Certificate] | None = None
        self._roots_expire_at = 0.0
        self._chains: dict[bytes, Validity] = {}
        """Chains that these roots verified, by digest."""

    def begin(self) -> Recollection:
        """Return what `keep_dek` and `keep_roots` are given: take it before asking the token."""
        return Recollection(self._generation)

    def dek(self, kek_id: bytes, blob: bytes) -> Dek | None:
        """Return the DEK of this blob under this KEK, when it is remembered."""
        self.expire()
        kept = self._deks.get(_name(kek_id, blob))
        return kept.dek if kept else None

    @property
    def dek_count(self) -> int:
        """How many DEKs are remembered."""
        return len(self._deks)

    def keep_dek(self, kek_id: bytes, blob: bytes, dek: Dek, begun: Recollection) -> None:
        """Remember a DEK, and forget the oldest one when there are too many."""
        if begun.generation != self._generation:
            return
        name = _name(kek_id, blob)
        known = self._deks.pop(name, None)
        if known is not None:
            known.dek.wipe()
        self._deks[name] = _Kept(dek, self._now() + DEK_SECONDS)
        if len(self._deks) > self._max_deks:
            self._forget_oldest()

    def roots(self) -> list[x509.Certificate] | None:
        """Return the imported roots, when they are remembered."""
        return self._roots if self._now() < self._roots_expire_at else None

    def keep_roots(self, roots: list[x509.Certificate], begun: Recollection) -> None:
        """Remember all imported roots."""
        if begun.generation == self._generation:
            self._roots, self._roots_expire_at = roots, self._now() + ROOT_SECONDS
            self._chains.clear()

    def is_verified(self, chain: bytes, now: datetime) -> bool:
        """Tell whether the remembered roots verified this chain, and it is valid now."""
        validity = self._chains.get(chain) if self.roots() is not None else None
        return validity is not None and validity.begin <= now <= validity.end

    def keep_chain(
        self, chain: bytes, validity: Validity, roots: Sequence[x509.Certificate]
    ) -> None:
        """Remember a verified chain, if these are still the roots that are remembered."""
        if roots is self._roots and len(self._chains) < MAX_CHAINS:
            self._chains[chain] = validity

    def forget_roots(self) -> None:
        """Forget the roots, what they verified, and what is being read of them now."""
        self._generation += 1
        self._chains.clear()
        self._roots = None
        self._roots_expire_at = 0.0

    def expire(self) -> None:
        """Wipe the DEKs whose time is over; to be called now and then when nobody asks."""
        now = self._now()
        while self._deks and next(iter(self._deks.values())).expires_at <= now:
            self._forget_oldest()

    def clear(self) -> None:
        """Wipe all keys, forget all roots, and what is being read now."""
        self.forget_roots()
        while self._deks:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        _, kept = self._deks.popitem(last=False)
        kept.dek.wipe()


def _name(kek_id: bytes, blob: bytes) -> _Name:
    """Return both as they are; a blob that is longer than usual by its SHA-256, marked as such."""
    if len(blob) <= _USUAL_BYTES:
        return kek_id, blob, False
    return kek_id, hashlib.sha256(blob).digest(), True
