"""The HSM plugin's client as a key service and as signers; the only user of its API."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

import grpc
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from istio_hsm_proto import kms_istio_v1_pb2 as kms
from istio_hsm_proto import signing_v1_pb2 as signing
from istio_hsm_proto.kms_istio_v1_pb2_grpc import KeyManagementServiceStub
from istio_hsm_proto.signing_v1_pb2_grpc import SigningServiceStub
from istiod_ca_bridge.errors import (
    BridgeError,
    KeyServiceNotPreparedError,
    KeyServiceRefusedError,
    KeyServiceUnavailableError,
)
from istiod_ca_bridge.records import ResidentKey, SealedKey
from istiod_ca_bridge.signature_batch import SignatureBatches
from istiod_ca_bridge.signer import KeyAlgorithm, PublicKey, algorithm_of, scheme_of

if TYPE_CHECKING:
    from istio_hsm_proto.signing_v1_pb2_grpc import SigningServiceAsyncStub

_CALL_TIMEOUT = timedelta(seconds=10)
_SIGN_TIMEOUT = timedelta(seconds=5)
_GENERATE_TIMEOUT = timedelta(seconds=120)
"""An RSA-4096 key takes a network HSM half a minute."""

_MAX_REPLY_BYTES = 1 << 20
_MAX_SIGNATURE_BYTES = 512
_CHANNEL_OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.max_receive_message_length", _MAX_REPLY_BYTES),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
]
_NUMBERS = {
    KeyAlgorithm.RSA_2048: signing.RSA_2048,
    KeyAlgorithm.RSA_3072: signing.RSA_3072,
    KeyAlgorithm.RSA_4096: signing.RSA_4096,
    KeyAlgorithm.ECDSA_P256: signing.ECDSA_P256,
    KeyAlgorithm.ECDSA_P384: signing.ECDSA_P384,
}
_NOT_PREPARED = {
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.PERMISSION_DENIED,
}
_REFUSED = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE}

T = TypeVar("T")


class HsmPlugin:
    """A key service over the plugin's socket."""

    def __init__(self, socket: Path) -> None:
        self._channel = grpc.aio.insecure_channel(f"unix:{socket}", options=_CHANNEL_OPTIONS)
        self._kms = KeyManagementServiceStub(self._channel)
        self._signing = SigningServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self._channel.close()

    async def generate_dek(self, kek_id: str) -> bytes:
        """Return a new DEK, wrapped by the KEK."""
        request = kms.GenerateDEKRequest(kek_kid=kek_id.encode())
        reply = await _called("GenerateDEK", self._kms.GenerateDEK, request)
        return _filled("GenerateDEK", reply.encrypted_dek_blob)

    async def generate_sealed_key(self, kek_id: str, encrypted_dek: bytes, bits: int) -> bytes:
        """Return a new RSA key, encrypted under the DEK."""
        request = kms.GenerateSKeyRequest(
            size=bits, kind=kms.RSA, kek_kid=kek_id.encode(), encrypted_dek_blob=encrypted_dek
        )
        reply = await _called(
            "GenerateSKey", self._kms.GenerateSKey, request, timeout=_GENERATE_TIMEOUT
        )
        return _filled("GenerateSKey", reply.encrypted_skey_blob)

    async def unseal(self, key: SealedKey) -> "MemoryKey":
        """Return the sealed key, unwrapped into memory."""
        request = kms.LoadSKeyRequest(
            kek_kid=key.kek_id.encode(),
            encrypted_dek_blob=key.encrypted_dek,
            encrypted_skey_blob=key.encrypted_skey,
        )
        reply = await _called("LoadSKey", self._kms.LoadSKey, request)
        return _memory_key(reply.plaintext_skey)

    async def make_resident(self, key: ResidentKey) -> "ResidentSigner":
        """Return the key of this id in the HSM, made when it is not there."""
        request = signing.GenerateSigningKeyRequest(
            key_id=key.key_id.encode(), algorithm=_NUMBERS[key.algorithm]
        )
        reply = await _called(
            "GenerateSigningKey",
            self._signing.GenerateSigningKey,
            request,
            timeout=_GENERATE_TIMEOUT,
        )
        return self._resident(key, reply.key)

    async def open_resident(self, key: ResidentKey) -> "ResidentSigner":
        """Return the key of this id in the HSM; it is never made."""
        request = signing.GetPublicKeyRequest(key_id=key.key_id.encode())
        reply = await _called("GetPublicKey", self._signing.GetPublicKey, request)
        return self._resident(key, reply.key)

    async def destroy_resident(self, key: ResidentKey) -> None:
        """Have the key of this id be gone from the HSM for good; gone before is no error."""
        wanted = signing.GetPublicKeyRequest(key_id=key.key_id.encode())
        try:
            found = await self._signing.GetPublicKey(wanted, timeout=_CALL_TIMEOUT.total_seconds())
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return
            raise _failure("GetPublicKey", error) from None
        request = signing.DestroyKeyRequest(
            key_id=wanted.key_id,
            confirm_key_id=wanted.key_id,
            confirm_public_key_sha256=hashlib.sha256(found.key.public_key).digest(),
        )
        await _called("DestroyKey", self._signing.DestroyKey, request)

    async def encrypt(
        self, kek_id: str, encrypted_dek: bytes, plaintext: bytes, aad: bytes
    ) -> bytes:
        """Return the ciphertext under the DEK, bound to the additional data."""
        request = kms.AuthenticatedEncryptRequest(
            kek_kid=kek_id.encode(), encrypted_dek_blob=encrypted_dek, plaintext=plaintext, aad=aad
        )
        reply = await _called("AuthenticatedEncrypt", self._kms.AuthenticatedEncrypt, request)
        return _filled("AuthenticatedEncrypt", reply.ciphertext)

    async def decrypt(
        self, kek_id: str, encrypted_dek: bytes, ciphertext: bytes, aad: bytes
    ) -> bytes:
        """Return the plaintext."""
        request = kms.AuthenticatedDecryptRequest(
            kek_kid=kek_id.encode(),
            encrypted_dek_blob=encrypted_dek,
            ciphertext=ciphertext,
            aad=aad,
        )
        reply = await _called("AuthenticatedDecrypt", self._kms.AuthenticatedDecrypt, request)
        return _filled("AuthenticatedDecrypt", reply.plaintext)

    async def verify_chain(self, certificates: list[bytes]) -> None:
        """Return when the path (DER, root first, target last) ends at an imported root."""
        request = kms.VerifyCertChainRequest(certificates=certificates)
        reply = await _called("VerifyCertChain", self._kms.VerifyCertChain, request)
        if not reply.successful_verification:
            raise KeyServiceRefusedError("VerifyCertChain answers no")

    def _resident(self, key: ResidentKey, answer: signing.SigningKey) -> "ResidentSigner":
        if answer.key_id != key.key_id.encode():
            raise KeyServiceRefusedError("the plugin answers with another key's id")
        try:
            public_key = serialization.load_der_public_key(answer.public_key)
        except (ValueError, UnsupportedAlgorithm):
            raise KeyServiceRefusedError("the plugin answers with a malformed key") from None
        if algorithm_of(public_key) is not key.algorithm:
            raise KeyServiceRefusedError(
                f"key {key.key_id} in the HSM is not {key.algorithm.value}",
                hint="another key has this id",
            )
        assert isinstance(public_key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey)  # noqa: S101 - RSA or EC
        return ResidentSigner(self._signing, key.key_id, public_key)


class ResidentSigner:
    """A key in the HSM: the digest goes there, the signature comes back."""

    def __init__(self, stub: "SigningServiceAsyncStub", key_id: str, public_key: PublicKey) -> None:
        self._stub = stub
        self._key_id = key_id.encode()
        self._public_key = public_key
        self._hash = scheme_of(public_key).hash
        self._algorithm = (
            signing.RSA_PKCS1_SHA256
            if isinstance(public_key, rsa.RSAPublicKey)
            else signing.ECDSA_SHA384
            if isinstance(self._hash, hashes.SHA384)
            else signing.ECDSA_SHA256
        )
        self._batches = SignatureBatches(self._signatures)

    @property
    def public_key(self) -> PublicKey:
        """The public half."""
        return self._public_key

    async def sign(self, message: bytes) -> bytes:
        """Return the signature made in the HSM."""
        digest = hashes.Hash(self._hash)
        digest.update(message)
        return await self._batches.sign(digest.finalize())

    async def _signatures(self, digests: list[bytes]) -> list[bytes]:
        request = signing.SignBatchRequest(
            key_id=self._key_id, algorithm=self._algorithm, digests=digests
        )
        reply = await _called("SignBatch", self._stub.SignBatch, request, timeout=_SIGN_TIMEOUT)
        if not all(0 < len(signature) <= _MAX_SIGNATURE_BYTES for signature in reply.signatures):
            raise KeyServiceUnavailableError("SignBatch answers something that is no signature")
        return list(reply.signatures)


class MemoryKey:
    """A key unwrapped into this process's memory; it has one way out, and no repr."""

    def __init__(self, private_key: rsa.RSAPrivateKey) -> None:
        self.__private_key = private_key
        self._public_key = private_key.public_key()

    @property
    def public_key(self) -> PublicKey:
        """The public half."""
        return self._public_key

    async def sign(self, message: bytes) -> bytes:
        """Return the signature made in memory, off the event loop."""
        return await asyncio.to_thread(
            self.__private_key.sign, message, padding.PKCS1v15(), hashes.SHA256()
        )

    def private_pem(self) -> bytes:
        """Return the key as LoadSKey gave it (PKCS#1), for an istiod that signs by itself."""
        return self.__private_key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )

    def __repr__(self) -> str:
        return f"<MemoryKey rsa-{self._public_key.key_size}>"

    def __reduce__(self) -> str:
        raise TypeError("a private key is not serialised")


def _memory_key(pem: bytes) -> MemoryKey:
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise KeyServiceRefusedError("LoadSKey answers something that is no key") from None
    if not isinstance(key, rsa.RSAPrivateKey) or algorithm_of(key.public_key()) is None:
        raise KeyServiceRefusedError("LoadSKey answers a key that no CA may have")
    return MemoryKey(key)


async def _called(
    name: str,
    method: Callable[..., Awaitable[T]],
    request: object,
    *,
    timeout: timedelta = _CALL_TIMEOUT,  # noqa: ASYNC109 - a gRPC deadline
) -> T:
    try:
        return await method(request, timeout=timeout.total_seconds())
    except grpc.aio.AioRpcError as error:
        raise _failure(name, error) from None


def _failure(name: str, error: grpc.aio.AioRpcError) -> BridgeError:
    code = error.code()
    reason = f"{name}: {code.name}: {(error.details() or '')[:500]}"
    if code in _REFUSED:
        return KeyServiceRefusedError(reason)
    if code in _NOT_PREPARED:
        return KeyServiceNotPreparedError(
            reason, hint="see the log of the HSM plugin; this is tried again"
        )
    return KeyServiceUnavailableError(
        reason, hint="is the HSM plugin running on KEY_MANAGEMENT_ENDPOINT?"
    )


def _filled(name: str, blob: bytes) -> bytes:
    if not blob:
        raise KeyServiceUnavailableError(f"{name} answers nothing")
    return blob
