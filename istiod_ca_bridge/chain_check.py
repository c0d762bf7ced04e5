"""The whole judgement of an offered chain: ours, then that of the HSM's own roots."""

from collections.abc import Callable, Iterable
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from istiod_ca_bridge.chain import CaChain, checked_chain
from istiod_ca_bridge.errors import KeyServiceRefusedError, RefusedChainError
from istiod_ca_bridge.key_service import KeyService
from istiod_ca_bridge.name_constraints import IssuedNames
from istiod_ca_bridge.signer import PublicKey


class ChainCheck:
    """Judges chains for what this CA issues."""

    def __init__(self, keys: KeyService, names: IssuedNames, clock: Callable[[], datetime]) -> None:
        self._keys = keys
        self._names = names
        self._clock = clock

    async def accepted(
        self, pem: bytes, public_key: PublicKey, further: Iterable[x509.Certificate] = ()
    ) -> CaChain:
        """Return the chain when the HSM's own root ends it, and every further root is one too.

        RefusedChainError says why not; KeyServiceUnavailableError when it cannot be told now.
        """
        chain = checked_chain(pem, public_key, self._clock(), self._names).trusting(further)
        path = [*chain.intermediates, chain.roots[0]]
        try:
            await self._keys.verify_chain([_der(entry) for entry in reversed(path)])
            for root in chain.roots[1:]:
                await self._keys.verify_chain([_der(root)])
        except KeyServiceRefusedError as error:
            raise RefusedChainError(
                f"the HSM plugin refuses the chain: {error}", hint=error.hint
            ) from error
        return chain


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)
