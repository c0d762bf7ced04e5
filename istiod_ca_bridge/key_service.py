"""What the CA's key lifecycle asks of the HSM plugin."""

from typing import Protocol

from istiod_ca_bridge.records import ResidentKey, SealedKey
from istiod_ca_bridge.signer import Signer


class KeyService(Protocol):
    """What the lifecycle asks of the HSM plugin.

    Every call raises KeyServiceUnavailableError (try again) or KeyServiceRefusedError (the
    arguments can never succeed).
    """

    async def generate_dek(self, kek_id: str) -> bytes:
        """Return a new DEK, wrapped by the KEK."""
        ...

    async def generate_sealed_key(self, kek_id: str, encrypted_dek: bytes, bits: int) -> bytes:
        """Return a new RSA key, encrypted under the DEK."""
        ...

    async def unseal(self, key: SealedKey) -> Signer:
        """Return the sealed key, unwrapped into memory."""
        ...

    async def make_resident(self, key: ResidentKey) -> Signer:
        """Return the key of this id in the HSM, made when it is not there."""
        ...

    async def open_resident(self, key: ResidentKey) -> Signer:
        """Return the key of this id in the HSM; it is never made."""
        ...

    async def destroy_resident(self, key: ResidentKey) -> None:
        """Have the key of this id be gone from the HSM for good; gone before is no error."""
        ...

    async def encrypt(
        self, kek_id: str, encrypted_dek: bytes, plaintext: bytes, aad: bytes
    ) -> bytes:
        """Return the ciphertext under the DEK, bound to the additional data."""
        ...

    async def decrypt(
        self, kek_id: str, encrypted_dek: bytes, ciphertext: bytes, aad: bytes
    ) -> bytes:
        """Return the plaintext."""
        ...

    async def verify_chain(self, certificates: list[bytes]) -> None:
        """Return when the path (DER, root first, target last) ends at an imported root."""
        ...
