"""Secrets of a kube-apiserver, encrypted by a KEK in the token.

The ciphertext is a compact JWE as a wrapped DEK's, with the KEK's id in its header. It is bound to
a context of its own, so that what the mesh wrapped under the same KEK does not decrypt here.
"""

from hsm_plugin.envelope import parse, protected_header, serialize
from hsm_plugin.errors import BadRequestError, HsmPluginError, RejectedBlobError
from hsm_plugin.keys import AsyncKeyStore, checked_id

CONTEXT = b"kubernetes-kms"
MAX_PLAINTEXT_BYTES = 16 << 10
"""An API server sends 32 bytes, its own key or the seed of it."""

HEALTHY = "ok"


class KubernetesKms:
    """Encrypts with one KEK, and decrypts what any KEK of the token encrypted here."""

    def __init__(self, store: AsyncKeyStore, kek_id: str) -> None:
        self._store = store
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
        protected = protected_header(self.kek_id, CONTEXT)
        sealed = await self._store.wrap(self.kek_id.encode(), plaintext, protected)
        return serialize(protected, sealed)

    async def decrypt(self, ciphertext: bytes, key_id: str | None = None) -> bytes:
        """Return the plaintext. `key_id`: of the KEK that it must have been encrypted with."""
        jwe = parse(ciphertext, "the ciphertext")
        if jwe.context != CONTEXT:
            raise RejectedBlobError(
                "the ciphertext was not made for Kubernetes",
                hint="pass what Encrypt of this service answered",
            )
        if key_id is not None and key_id != jwe.kid:
            raise RejectedBlobError(
                "the ciphertext was made with another KEK than the one named",
                hint="pass the key_id that is stored beside the ciphertext",
            )
        kek_id = checked_id(jwe.kid.encode(), "KEK id")
        return await self._store.unwrap(kek_id, jwe.sealed, jwe.protected)
