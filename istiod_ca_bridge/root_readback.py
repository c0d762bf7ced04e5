"""Which namespaces do not hold all roots that they are to trust: read, not remembered."""

import contextlib
from collections.abc import Sequence
from typing import Protocol

from cryptography import x509

from istiod_ca_bridge.chain import pem_of
from istiod_ca_bridge.observed import Listing
from istiod_ca_bridge.root_cert import Events, RootCertificates


class RootReadback(Protocol):
    """What the ConfigMaps really hold."""

    async def lacking(self, roots: Sequence[x509.Certificate]) -> tuple[str, ...]:
        """Return who lacks one of the roots; ClusterUnavailableError when it is not known."""
        ...


class ListedRoots:
    """A RootReadback that lists every ConfigMap each time."""

    def __init__(self, cluster: RootCertificates) -> None:
        self._cluster = cluster

    async def lacking(self, roots: Sequence[x509.Certificate]) -> tuple[str, ...]:
        """Return the namespaces, sorted."""
        wanted = [pem_of(root).strip() for root in roots]
        namespaces = await _first(self._cluster.namespaces())
        held = await _first(self._cluster.held())
        return tuple(
            sorted(
                namespace
                for namespace in namespaces.contents
                if not all(root in held.contents.get(namespace, "") for root in wanted)
            )
        )


async def _first(events: Events) -> Listing[str]:
    async with contextlib.aclosing(events):
        async for event in events:
            if isinstance(event, Listing):
                return event
    return Listing({})
