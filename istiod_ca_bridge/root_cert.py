"""The ConfigMap that tells sidecars of a namespace which roots to trust."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Protocol

from istiod_ca_bridge.observed import Change, Listing

CONFIG_MAP = "istio-ca-root-cert"
KEY = "root-cert.pem"
CRL = ("istio-ca-crl", "ca-crl.pem")
"""ConfigMap and key, published in the same way, for sidecars that heed revocations (1.27 on)."""

_WINDOW_SECONDS = 60.0
_AT_ONCE = 3
_LONGEST_SECONDS = 30.0


Events = AsyncGenerator[Listing[str] | Change[str], None]
"""One listing, then changes, by namespace. It ends when it is time to list again."""


class RootCertificates(Protocol):
    """Namespaces of a cluster, and what their ConfigMaps hold."""

    def namespaces(self) -> Events:
        """Yield the namespaces that take ConfigMaps, each with an empty content.

        ClusterUnavailableError when the API server is away or does not let us.
        """
        ...

    def held(self) -> Events:
        """Yield the roots that each namespace's ConfigMap holds; the same errors."""
        ...

    async def write(self, namespace: str, roots_pem: str, *, exists: bool) -> None:
        """Make or mend a ConfigMap; the same errors. A namespace that is gone is no error."""
        ...


@dataclass(slots=True)
class Pace:
    """How soon a namespace may be written again: a few times at once, then ever later.

    A ConfigMap that another program keeps changing back costs a write every half minute.
    """

    _attempts: dict[str, list[float]] = field(default_factory=dict)

    def note(self, namespace: str, now: float) -> int:
        """Count an attempt; return how many there were in the last minute."""
        self._attempts[namespace] = [*self._recent(namespace, now), now]
        return len(self._attempts[namespace])

    def delay(self, namespace: str, now: float) -> float:
        """Return for how many seconds to wait."""
        over = len(self._recent(namespace, now)) - _AT_ONCE
        return 0.0 if over < 0 else min(2.0**over, _LONGEST_SECONDS)

    def forget(self, namespace: str) -> None:
        """Drop what is known of a namespace that is gone."""
        self._attempts.pop(namespace, None)

    def _recent(self, namespace: str, now: float) -> list[float]:
        return [at for at in self._attempts.get(namespace, []) if now - at < _WINDOW_SECONDS]


def contested(attempts: int) -> bool:
    """Tell whether so many writes in a minute mean that another program writes too."""
    return attempts > _AT_ONCE
