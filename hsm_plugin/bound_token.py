"""The token for one call: an AsyncKeyStore that knows the call's lane and its deadline."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from hsm_plugin import worker_codec
from hsm_plugin.admission import Lane
from hsm_plugin.keys import (
    InspectedKey,
    KekCipher,
    KeyAlgorithm,
    ListedKey,
    Sealed,
    SignatureAlgorithm,
    SigningKey,
    TrustedRoot,
)
from hsm_plugin.signing_pace import SigningPace
from hsm_plugin.wire import Operation

Ask = Callable[[Operation, Sequence[bytes], Lane, float], Awaitable[list[bytes]]]
"""TokenClient.call: operation, fields, lane, deadline -> results."""


@dataclass(slots=True)  # not frozen: one is made for each call, in half the time
class BoundToken:
    """An AsyncKeyStore for one call: its lane and its deadline."""

    _ask: Ask
    _pace: SigningPace
    _lane: Lane
    _deadline: float

    async def generate_kek(self, kek_id: bytes, cipher: KekCipher = KekCipher.GCM) -> bool:
        """See KeyStore."""
        (created,) = await self._call(Operation.GENERATE_KEK, kek_id, cipher.value.encode())
        return worker_codec.decode_bool(created)

    async def wrap(
        self, kek_id: bytes, plaintext: bytes, aad: bytes, cipher: KekCipher = KekCipher.GCM
    ) -> Sealed:
        """See KeyStore."""
        name = cipher.value.encode()
        iv, ciphertext, tag = await self._call(Operation.WRAP, kek_id, plaintext, aad, name)
        return Sealed(iv=iv, ciphertext=ciphertext, tag=tag, cipher=cipher)

    async def make_deks(
        self, kek_id: bytes, count: int, cipher: KekCipher = KekCipher.GCM
    ) -> list[bytes]:
        """Return up to so many new DEKs, at least one, each as a blob of the KEK."""
        name = cipher.value.encode()
        return await self._call(Operation.MAKE_DEKS, kek_id, str(count).encode(), name)

    async def unwrap(self, kek_id: bytes, sealed: Sealed, aad: bytes) -> bytes:
        """See KeyStore."""
        parts = (sealed.iv, sealed.ciphertext, sealed.tag, sealed.cipher.value.encode())
        (plaintext,) = await self._call(Operation.UNWRAP, kek_id, *parts, aad)
        return plaintext

    async def destroy_kek(self, kek_id: bytes, cipher: KekCipher = KekCipher.GCM) -> None:
        """See KeyStore."""
        await self._call(Operation.DESTROY_KEK, kek_id, cipher.value.encode())

    async def generate_signing_key(
        self, key_id: bytes, algorithm: KeyAlgorithm
    ) -> tuple[SigningKey, bool]:
        """See KeyStore."""
        name = algorithm.value.encode()
        *key, created = await self._call(Operation.GENERATE_SIGNING_KEY, key_id, name)
        return worker_codec.decode_signing_key(key), worker_codec.decode_bool(created)

    async def signing_key(self, key_id: bytes) -> SigningKey:
        """See KeyStore."""
        fields = await self._call(Operation.SIGNING_KEY, key_id)
        return worker_codec.decode_signing_key(fields)

    async def sign(self, key_id: bytes, algorithm: SignatureAlgorithm, digest: bytes) -> bytes:
        """See KeyStore."""
        name = algorithm.value.encode()
        (signature,) = await self._call(Operation.SIGN, key_id, name, digest)
        return signature

    async def sign_batch(
        self, key_id: bytes, algorithm: SignatureAlgorithm, digests: Sequence[bytes]
    ) -> list[bytes]:
        """See KeyStore. The digests are spread over threads where that is faster."""
        size = self._pace.packet_size(algorithm, len(digests))
        head = (key_id, algorithm.value.encode())
        parts = [
            asyncio.ensure_future(
                self._call(Operation.SIGN_BATCH, *head, *digests[start : start + size])
            )
            for start in range(0, len(digests), size)
        ]
        try:
            answers = await asyncio.gather(*parts)
        finally:
            for part in parts:
                part.cancel()
        for *signatures, seconds in answers:
            took = worker_codec.decode_seconds(seconds)
            self._pace.note(algorithm, took / len(signatures))
        return [signature for *signatures, _ in answers for signature in signatures]

    async def signing_keys(self) -> list[ListedKey]:
        """See KeyStore."""
        return worker_codec.decode_listed_keys(await self._call(Operation.SIGNING_KEYS))

    async def inspect(self) -> list[InspectedKey]:
        """See KeyStore."""
        return worker_codec.decode_inspected_keys(await self._call(Operation.INSPECT))

    async def destroy_signing_key(self, key_id: bytes, public_key_sha256: bytes) -> None:
        """See KeyStore."""
        await self._call(Operation.DESTROY_SIGNING_KEY, key_id, public_key_sha256)

    async def add_root(self, root: TrustedRoot) -> bool:
        """See KeyStore."""
        fields = (root.ca_id, root.subject, root.certificate)
        (stored,) = await self._call(Operation.ADD_ROOT, *fields)
        return worker_codec.decode_bool(stored)

    async def roots(self) -> list[TrustedRoot]:
        """See KeyStore."""
        return worker_codec.decode_roots(await self._call(Operation.ROOTS))

    async def _call(self, operation: Operation, *fields: bytes) -> list[bytes]:
        return await self._ask(operation, fields, self._lane, self._deadline)
