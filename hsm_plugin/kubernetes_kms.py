"""Secrets of a kube-apiserver, encrypted by a KEK in the token.

The ciphertext is a compact JWE as a wrapped DEK's, with the KEK's id in its header. It is bound to
a context of its own, so that what the mesh wrapped under the same KEK does not decrypt here.
"""

from hsm_plugin import kek_blobs
from hsm_plugin.errors import BadRequestError, HsmPluginError, RejectedBlobError
from hsm_plugin.kek_blobs import Purpose
from hsm_plugin.keys import AsyncKeyStore, KekCipher, checked_id

MAX_PLAINTEXT_BYTES = 16 << 10
"""An API server sends 32 bytes, its own key or the seed of it."""

HEALTHY = "ok"


class KubernetesKms:
    """Encrypts with one KEK, and decrypts what any KEK of the token encrypted here."""

    def __init__(
        self, store: AsyncKeyStore, kek_id: str, cipher: KekCipher = KekCipher.GCM
    ) -> None:
        self._store = store
        self._cipher = cipher
        self.kek_id = kek_id

    async def health(self) -> str:
        """Return HEALTHY when the KEK encrypts now, the reason why not otherwise."""
        try:
            await self.encrypt(b"")
        except HsmPluginError as error:
            return str(error)
        return HEALTHY

    async def encrypt(self, plaintext: bytes) -> bytes:
        """Return the ciphertext under the KEK."""
        if len(plaintext) > MAX_PLAINTEXT_BYTES:
            raise BadRequestError(
                f"the plaintext has {len(plaintext)} bytes, more than {MAX_PLAINTEXT_BYTES}",
                hint="only keys are encrypted here, as a kube-apiserver does it",
            )
        kek_id = self.kek_id.encode()
        return await kek_blobs.wrap(
            self._store, self._cipher, kek_id, plaintext, Purpose.KUBERNETES
        )

    async def decrypt(self, ciphertext: bytes, key_id: str | None = None) -> bytes:
        """Return the plaintext. `key_id`: of the KEK that it must have been encrypted with.

        The reference names the KEK in hexadecimal where it encrypted with AES-CBC.
        """
        wrapped = kek_blobs.parse(ciphertext, Purpose.KUBERNETES, "the ciphertext")
        kek_id = checked_id(wrapped.kek_id, "KEK id")
        if key_id is not None and key_id not in (kek_id.decode(), wrapped.kid):
            raise RejectedBlobError(
                "the ciphertext was made with another KEK than the one named",
                hint="pass the key_id that is stored beside the ciphertext",
            )
        return await kek_blobs.unwrap(self._store, wrapped)
