"""What Kubernetes encrypts is bound to its KEK and to Kubernetes."""

import hashlib

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hsm_plugin.envelope import protected_header, serialize
from hsm_plugin.errors import BadRequestError, HsmUnavailableError, RejectedBlobError
from hsm_plugin.kek_blobs import Purpose
from hsm_plugin.keys import AsyncKeyStore, KekCipher, Sealed
from hsm_plugin.kubernetes_kms import HEALTHY, MAX_PLAINTEXT_BYTES, KubernetesKms

IV = b"i" * 16


class Keys:
    """Two methods of a store, with one AES key for each KEK id."""

    def __init__(self) -> None:
        self.is_down = False

    async def wrap(
        self, kek_id: bytes, plaintext: bytes, aad: bytes, _cipher: KekCipher = KekCipher.GCM
    ) -> Sealed:
        if self.is_down:
            raise HsmUnavailableError("the token is not connected")
        output = self._key(kek_id).encrypt(IV, plaintext, aad)
        return Sealed(iv=IV, ciphertext=output[:-16], tag=output[-16:])

    async def unwrap(self, kek_id: bytes, sealed: Sealed, aad: bytes) -> bytes:
        try:
            return self._key(kek_id).decrypt(sealed.iv, sealed.ciphertext + sealed.tag, aad)
        except InvalidTag:
            raise RejectedBlobError("does not authenticate") from None

    @staticmethod
    def _key(kek_id: bytes) -> AESGCM:
        return AESGCM(hashlib.sha256(kek_id).digest())


def kms(keys: Keys, kek_id: str = "new") -> KubernetesKms:
    store: AsyncKeyStore = keys  # type: ignore[assignment] # the part that is used
    return KubernetesKms(store, kek_id)


async def test_what_is_encrypted_decrypts_with_and_without_its_key_id() -> None:
    api = kms(Keys())
    ciphertext = await api.encrypt(b"seed")
    assert await api.decrypt(ciphertext) == b"seed"
    assert await api.decrypt(ciphertext, "new") == b"seed"


async def test_what_an_earlier_kek_encrypted_still_decrypts() -> None:
    keys = Keys()
    ciphertext = await kms(keys, "old").encrypt(b"seed")
    assert await kms(keys, "new").decrypt(ciphertext, "old") == b"seed"


@pytest.mark.parametrize("key_id", ["", "new", "old2"])
async def test_another_key_id_than_the_ciphertexts_is_refused(key_id: str) -> None:
    keys = Keys()
    ciphertext = await kms(keys, "old").encrypt(b"seed")
    with pytest.raises(RejectedBlobError, match="another KEK"):
        await kms(keys).decrypt(ciphertext, key_id)


@pytest.mark.parametrize("context", [b"", b"other"])
async def test_what_was_wrapped_for_another_purpose_is_refused(context: bytes) -> None:
    keys, protected = Keys(), protected_header("new", context)
    blob = serialize(protected, await keys.wrap(b"new", b"a DEK", protected))
    with pytest.raises(RejectedBlobError, match="not made for Kubernetes"):
        await kms(keys).decrypt(blob, "new")
    _, _, *rest = blob.split(b".")
    relabelled = b".".join([protected_header("new", Purpose.KUBERNETES.context), b"", *rest])
    with pytest.raises(RejectedBlobError, match="authenticate"):
        await kms(keys).decrypt(relabelled, "new")


async def test_a_plaintext_has_a_largest_size() -> None:
    api = kms(Keys())
    assert await api.encrypt(bytes(MAX_PLAINTEXT_BYTES))
    with pytest.raises(BadRequestError, match="more than"):
        await api.encrypt(bytes(MAX_PLAINTEXT_BYTES + 1))


async def test_a_seed_fits_what_an_api_server_takes() -> None:
    assert len(await kms(Keys(), "k" * 128).encrypt(bytes(32))) < 1024


async def test_health_is_ok_or_the_reason_why_not() -> None:
    keys = Keys()
    assert await kms(keys).health() == HEALTHY == "ok"
    keys.is_down = True
    assert await kms(keys).health() == "the token is not connected"
