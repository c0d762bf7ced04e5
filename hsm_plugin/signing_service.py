"""Keys that never leave the HSM: messages <-> token (see signing_v1.proto)."""

import uuid

from hsm_plugin.errors import BadRequestError
from hsm_plugin.keys import AsyncKeyStore, KeyAlgorithm, SignatureAlgorithm, SigningKey, checked_id
from istio_hsm_proto import signing_v1_pb2 as pb

_KEY_ALGORITHMS = {
    pb.RSA_2048: KeyAlgorithm.RSA_2048,
    pb.RSA_3072: KeyAlgorithm.RSA_3072,
    pb.RSA_4096: KeyAlgorithm.RSA_4096,
    pb.ECDSA_P256: KeyAlgorithm.ECDSA_P256,
    pb.ECDSA_P384: KeyAlgorithm.ECDSA_P384,
}
_KEY_ALGORITHM_NUMBERS = {value: number for number, value in _KEY_ALGORITHMS.items()}
_SIGNATURE_ALGORITHMS = {
    pb.RSA_PKCS1_SHA256: SignatureAlgorithm.RSA_PKCS1_SHA256,
    pb.RSA_PKCS1_SHA384: SignatureAlgorithm.RSA_PKCS1_SHA384,
    pb.RSA_PKCS1_SHA512: SignatureAlgorithm.RSA_PKCS1_SHA512,
    pb.ECDSA_SHA256: SignatureAlgorithm.ECDSA_SHA256,
    pb.ECDSA_SHA384: SignatureAlgorithm.ECDSA_SHA384,
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
        key_id = checked_id(request.key_id or str(uuid.uuid4()).encode(), "key id")
        key, created = await self._store.generate_signing_key(key_id, algorithm)
        return pb.GenerateSigningKeyResponse(key=_message(key), created=created)

    async def get_public_key(self, request: pb.GetPublicKeyRequest) -> pb.GetPublicKeyResponse:
        """Answer the public half of a resident key."""
        key = await self._store.signing_key(checked_id(request.key_id, "key id"))
        return pb.GetPublicKeyResponse(key=_message(key))

    async def sign(self, request: pb.SignRequest) -> pb.SignResponse:
        """Answer the signature of a digest."""
        algorithm = _SIGNATURE_ALGORITHMS.get(request.algorithm)
        if algorithm is None:
            raise BadRequestError(
                "the signature algorithm is missing or unknown",
                hint=f"ask for one of {', '.join(entry.name for entry in SignatureAlgorithm)}",
            )
        if len(request.digest) != algorithm.digest_bytes:
            raise BadRequestError(
                f"the digest has {len(request.digest)} bytes instead of {algorithm.digest_bytes}",
                hint="send the digest of the message, not the message",
            )
        key_id = checked_id(request.key_id, "key id")
        signature = await self._store.sign(key_id, algorithm, request.digest)
        return pb.SignResponse(signature=signature)


def _message(key: SigningKey) -> pb.SigningKey:
    return pb.SigningKey(
        key_id=key.key_id,
        algorithm=_KEY_ALGORITHM_NUMBERS[key.algorithm],
        public_key=key.public_key,
    )
