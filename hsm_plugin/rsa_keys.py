"""RSA keys made in software: each takes up to seconds of a core, so only a few are made at once."""

import asyncio

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from hsm_plugin.admission import Admission, Lane

_LANE = Lane(b"")
_MAX_WAIT_SECONDS = 60.0


class RsaKeys:
    """Makes at most `at_once` keys at a time, for at most `queue_limit` callers that wait."""

    def __init__(self, *, at_once: int, queue_limit: int) -> None:
        self._admission = Admission(running_limit=at_once, queue_limit=queue_limit)

    async def make(self, bits: int) -> bytes:
        """Return a new private key, PEM of PKCS#1; OverloadedError when too many wait."""
        loop = asyncio.get_running_loop()
        await self._admission.enter(_LANE, loop.time() + _MAX_WAIT_SECONDS)
        making = loop.run_in_executor(None, _make, bits)
        # Not when the caller leaves: a thread that runs cannot be stopped, and keeps its place.
        making.add_done_callback(lambda _: self._admission.leave())
        return await asyncio.shield(making)


def _make(bits: int) -> bytes:
    key = rsa.generate_private_key(public_exponent=65537, key_size=bits)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
