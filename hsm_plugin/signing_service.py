"""Keys that never leave the HSM: messages <-> token (see signing_v1.proto)."""

import uuid

from hsm_plugin.errors import BadRequestError
from hsm_plugin.keys import (
    AUDIT_KEY_ID,
    AsyncKeyStore,
    KeyAlgorithm,
    ListedKey,
    SignatureAlgorithm,
    SigningKey,
    checked_id,
)
from istio_hsm_proto import signing_v1_pb2 as pb

MAX_BATCH = 256
MAX_MESSAGE_BYTES = 64 << 10
_SHA256_BYTES = 32
_KEY_ALGORITHMS = {
    pb.RSA_2048: KeyAlgorithm.RSA_2048,
    pb.RSA_3072: KeyAlgorithm.RSA_3072,
    pb.RSA_4096: KeyAlgorithm.RSA_4096,
    pb.ECDSA_P256: KeyAlgorithm.ECDSA_P256,
    pb.ECDSA_P384: KeyAlgorithm.ECDSA_P384,
    pb.ECDSA_P521: KeyAlgorithm.ECDSA_P521,
    pb.ED25519: KeyAlgorithm.ED25519,
}
_KEY_ALGORITHM_NUMBERS = {value: number for number, value in _KEY_ALGORITHMS.items()}
_SIGNATURE_ALGORITHMS: dict[int, SignatureAlgorithm] = {
    pb.RSA_PKCS1_SHA256: SignatureAlgorithm.RSA_PKCS1_SHA256,
    pb.RSA_PKCS1_SHA384: SignatureAlgorithm.RSA_PKCS1_SHA384,
    pb.RSA_PKCS1_SHA512: SignatureAlgorithm.RSA_PKCS1_SHA512,
    pb.ECDSA_SHA256: SignatureAlgorithm.ECDSA_SHA256,
    pb.ECDSA_SHA384: SignatureAlgorithm.ECDSA_SHA384,
    pb.RSA_PSS_SHA256: SignatureAlgorithm.RSA_PSS_SHA256,
    pb.RSA_PSS_SHA384: SignatureAlgorithm.RSA_PSS_SHA384,
    pb.RSA_PSS_SHA512: SignatureAlgorithm.RSA_PSS_SHA512,
    pb.ECDSA_SHA512: SignatureAlgorithm.ECDSA_SHA512,
    pb.EDDSA_ED25519: SignatureAlgorithm.EDDSA_ED25519,
}


class Signing:
    """The calls, each from message to message. Raises HsmPluginError."""

    def __init__(self, store: AsyncKeyStore) -> None:
        self._store = store

    async def generate_signing_key(
        self, request: pb.GenerateSigningKeyRequest
    ) -> pb.GenerateSigningKeyResponse:
        """Answer the key pair of this id, made when it was not there."""
        algorithm = _KEY_ALGORITHMS.get(request.algorithm)
        if algorithm is None:
            raise BadRequestError(
                "the key algorithm is missing or unknown",
                hint=f"ask for one of {', '.join(entry.name for entry in KeyAlgorithm)}",
            )
        key_id = _own(checked_id(request.key_id or str(uuid.uuid4()).encode(), "key id"))
        key, created = await self._store.generate_signing_key(key_id, algorithm)
        return pb.GenerateSigningKeyResponse(key=_message(key), created=created)

    async def get_public_key(self, request: pb.GetPublicKeyRequest) -> pb.GetPublicKeyResponse:
        """Answer the public half of a resident key."""
        key = await self._store.signing_key(checked_id(request.key_id, "key id"))
        return pb.GetPublicKeyResponse(key=_message(key))

    async def sign(self, request: pb.SignRequest) -> pb.SignResponse:
        """Answer the signature of a digest."""
        algorithm = _signature_algorithm(request.algorithm)
        _check_digests(algorithm, [request.digest])
        key_id = _own(checked_id(request.key_id, "key id"))
        signature = await self._store.sign(key_id, algorithm, request.digest)
        return pb.SignResponse(signature=signature)

    async def sign_batch(self, request: pb.SignBatchRequest) -> pb.SignBatchResponse:
        """Answer the signatures of all digests."""
        algorithm = _signature_algorithm(request.algorithm)
        digests = list(request.digests)
        if not 1 <= len(digests) <= MAX_BATCH:
            raise BadRequestError(
                f"the batch has {len(digests)} digests", hint=f"send 1 to {MAX_BATCH}"
            )
        _check_digests(algorithm, digests)
        key_id = _own(checked_id(request.key_id, "key id"))
        signatures = await self._store.sign_batch(key_id, algorithm, digests)
        return pb.SignBatchResponse(signatures=signatures)

    async def list_keys(self, _: pb.ListKeysRequest) -> pb.ListKeysResponse:
        """Answer every signing key of the token."""
        keys = await self._store.signing_keys()
        return pb.ListKeysResponse(keys=[_listed(entry) for entry in keys])

    async def destroy_key(self, request: pb.DestroyKeyRequest) -> pb.DestroyKeyResponse:
        """Answer when the key pair is no more."""
        key_id = _own(checked_id(request.key_id, "key id"))
        if request.confirm_key_id != key_id:
            raise BadRequestError(
                "confirm_key_id is not the key id", hint="repeat the id of the key to destroy"
            )
        if len(request.confirm_public_key_sha256) != _SHA256_BYTES:
            raise BadRequestError(
                "confirm_public_key_sha256 has not the length of a SHA-256",
                hint="send the 32 bytes of the SHA-256 of the public key",
            )
        await self._store.destroy_signing_key(key_id, request.confirm_public_key_sha256)
        return pb.DestroyKeyResponse()


def _own(key_id: bytes) -> bytes:
    """Return the id of a key that callers may use; BadRequestError for the plugin's own."""
    if key_id == AUDIT_KEY_ID:
        raise BadRequestError(
            f"the key {AUDIT_KEY_ID.decode()} signs the audit log and nothing else",
            hint="choose another key id",
        )
    return key_id


def _signature_algorithm(number: int) -> SignatureAlgorithm:
    algorithm = _SIGNATURE_ALGORITHMS.get(number)
    if algorithm is None:
        raise BadRequestError(
            "the signature algorithm is missing or unknown",
            hint=f"ask for one of {', '.join(entry.name for entry in SignatureAlgorithm)}",
        )
    return algorithm


def _check_digests(algorithm: SignatureAlgorithm, digests: list[bytes]) -> None:
    if algorithm.digest_bytes is None:
        size = sum(map(len, digests))
        if size > MAX_MESSAGE_BYTES:
            raise BadRequestError(
                f"the message has {size} bytes, more than {MAX_MESSAGE_BYTES}",
                hint="sign larger ones with an algorithm that takes a digest",
            )
        return
    for digest in digests:
        if len(digest) != algorithm.digest_bytes:
            raise BadRequestError(
                f"the digest has {len(digest)} bytes instead of {algorithm.digest_bytes}",
                hint="send the digest of the message, not the message",
            )


def _listed(entry: ListedKey) -> pb.ListedKey:
    key = _message(entry.key) if entry.key else pb.SigningKey(key_id=entry.key_id)
    return pb.ListedKey(key=key, fault=entry.fault)


def _message(key: SigningKey) -> pb.SigningKey:
    return pb.SigningKey(
        key_id=key.key_id,
        algorithm=_KEY_ALGORITHM_NUMBERS[key.algorithm],
        public_key=key.public_key,
    )
