"""A signer that tells how long its key takes, and when it fails."""

import time

from istiod_ca_bridge.errors import BridgeError
from istiod_ca_bridge.metrics import Metrics
from istiod_ca_bridge.signer import PublicKey, Signer


class MeasuredSigner:
    """Signs by another signer."""

    def __init__(self, signer: Signer, metrics: Metrics) -> None:
        self._signer = signer
        self._metrics = metrics

    @property
    def public_key(self) -> PublicKey:
        """The public half."""
        return self._signer.public_key

    async def sign(self, message: bytes) -> bytes:
        """Return the other signer's signature."""
        began = time.perf_counter()
        try:
            signature = await self._signer.sign(message)
        except BridgeError:
            self._metrics.signature_failures.inc()
            raise
        self._metrics.signature_seconds.observe(time.perf_counter() - began)
        return signature
