"""The plugin's calls, each serialized once, with all that they need made beforehand."""

import hashlib
from collections.abc import Mapping

from bench.echo import METHOD as ECHO_METHOD
from bench.h2load import Call
from istio_hsm_proto import kms_istio_v1_pb2 as kms
from istio_hsm_proto import kms_istio_v1_pb2_grpc as kms_grpc
from istio_hsm_proto import signing_v1_pb2 as signing
from istio_hsm_proto import signing_v1_pb2_grpc as signing_grpc
from tests.support import pki

ECHO = "echo"
ECHO_UVLOOP = "echo on the plugin's event loop"
SIGN_RSA = "Sign RSA-2048"
SIGN_P256 = "Sign P-256"
LOAD_SKEY = "LoadSKey"
GENERATE_DEK = "GenerateDEK"
BATCH = 64
SIGN_BATCH = f"SignBatch of {BATCH}, P-256"

_KMS = "/thalescpl.io.ekms.istio.v1.KeyManagementService"
_SIGNING = f"/{signing.DESCRIPTOR.services_by_name['SigningService'].full_name}"
_KEK = b"bench"
_DIGEST = hashlib.sha256(b"bench").digest()
_KEYS = {
    b"bench-rsa-2048": signing.RSA_2048,
    b"bench-rsa-4096": signing.RSA_4096,
    b"bench-ecdsa-p256": signing.ECDSA_P256,
}


def echo_call(request: bytes = b"x" * 300) -> Call:
    """Return the empty call beside which the others are measured."""
    return Call(ECHO_METHOD, request)


def prepare(
    keys: kms_grpc.KeyManagementServiceStub, signer: signing_grpc.SigningServiceStub
) -> Mapping[str, Call]:
    """Make KEK, DEK, keys and root, and return the calls by name."""
    reference = reference_calls(keys, _KEK)
    root = pki.root("Bench Root")
    keys.ImportCACert(kms.ImportCACertRequest(ca_cert_blob=root.der))
    for key_id, algorithm in _KEYS.items():
        signer.GenerateSigningKey(
            signing.GenerateSigningKeyRequest(key_id=key_id, algorithm=algorithm)
        )
    return {
        **reference,
        "VerifyCertChain": Call(
            f"{_KMS}/VerifyCertChain",
            kms.VerifyCertChainRequest(certificates=[root.der]).SerializeToString(),
        ),
        SIGN_RSA: _sign(b"bench-rsa-2048", signing.RSA_PKCS1_SHA256),
        "Sign RSA-4096": _sign(b"bench-rsa-4096", signing.RSA_PKCS1_SHA256),
        SIGN_P256: _sign(b"bench-ecdsa-p256", signing.ECDSA_SHA256),
        SIGN_BATCH: Call(
            f"{_SIGNING}/SignBatch",
            signing.SignBatchRequest(
                key_id=b"bench-ecdsa-p256",
                algorithm=signing.ECDSA_SHA256,
                digests=[_DIGEST] * BATCH,
            ).SerializeToString(),
        ),
    }


def reference_calls(keys: kms_grpc.KeyManagementServiceStub, kek_id: bytes) -> Mapping[str, Call]:
    """Make the KEK when it is missing, and return the calls that the reference API has too."""
    keys.GenerateKEK(kms.GenerateKEKRequest(kek_kid=kek_id))
    dek = new_dek(keys, kek_id)
    key = keys.GenerateSKey(
        kms.GenerateSKeyRequest(size=2048, kind=kms.RSA, kek_kid=kek_id, encrypted_dek_blob=dek)
    ).encrypted_skey_blob
    ciphertext = keys.AuthenticatedEncrypt(_encrypt(kek_id, dek, 1000)).ciphertext
    load_skey = kms.LoadSKeyRequest(kek_kid=kek_id, encrypted_dek_blob=dek, encrypted_skey_blob=key)
    decrypt = kms.AuthenticatedDecryptRequest(
        kek_kid=kek_id, encrypted_dek_blob=dek, ciphertext=ciphertext, aad=b"bench"
    )
    requests = {
        GENERATE_DEK: kms.GenerateDEKRequest(kek_kid=kek_id),
        LOAD_SKEY: load_skey,
        "AuthenticatedEncrypt": _encrypt(kek_id, dek, 1000),
        "AuthenticatedDecrypt": decrypt,
    }
    return {
        name: Call(f"{_KMS}/{name}", request.SerializeToString())
        for name, request in requests.items()
    }


def new_dek(keys: kms_grpc.KeyManagementServiceStub, kek_id: bytes = _KEK) -> bytes:
    """Return an encrypted DEK under a KEK that is there."""
    return keys.GenerateDEK(kms.GenerateDEKRequest(kek_kid=kek_id)).encrypted_dek_blob


def encrypt_call(dek: bytes, size: int) -> Call:
    """Return AuthenticatedEncrypt of `size` bytes."""
    return Call(f"{_KMS}/AuthenticatedEncrypt", _encrypt(_KEK, dek, size).SerializeToString())


def _encrypt(kek_id: bytes, dek: bytes, size: int) -> kms.AuthenticatedEncryptRequest:
    return kms.AuthenticatedEncryptRequest(
        kek_kid=kek_id, encrypted_dek_blob=dek, plaintext=b"x" * size, aad=b"bench"
    )


def _sign(key_id: bytes, algorithm: signing.SignatureAlgorithm.ValueType) -> Call:
    request = signing.SignRequest(key_id=key_id, algorithm=algorithm, digest=_DIGEST)
    return Call(f"{_SIGNING}/Sign", request.SerializeToString())
