"""The CA that the lifecycle handed over last, and the one that is served with by now."""

import asyncio
from typing import TYPE_CHECKING

from istiod_ca_bridge.authority import Authority, authority
from istiod_ca_bridge.measured_signer import MeasuredSigner
from istiod_ca_bridge.metrics import Metrics

if TYPE_CHECKING:
    from istiod_ca_bridge.signer import Signer


class Adoption:
    """Between who hands over and who serves."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.authority: Authority | None = None
        """What is to be served with; its signatures are measured."""

        self.key: Signer | None = None
        """The key of that authority, as the lifecycle handed it over."""

        self.served: Authority | None = None
        self.changed = asyncio.Event()
        """Set with each authority that was handed over."""

    def adopt(self, adopted: Authority) -> None:
        """Have this authority be served with."""
        measured = MeasuredSigner(adopted.signer, self._metrics)
        self.authority = authority(adopted.chain, measured).refusing(adopted.own_keys)
        self.key = adopted.signer
        self.changed.set()

    def serving(self) -> Authority | None:
        """Return what is served with now."""
        return self.served
