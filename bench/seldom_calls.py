"""The plugin's calls that are made seldom: those of the ceremony, of rotation, and of Kubernetes.

What destroys a key or takes up other credentials is not among them: it cannot be repeated.
"""

from collections.abc import Mapping
from types import ModuleType

import grpc
from google.protobuf.message import Message

from bench import plugin_calls
from bench.h2load import Call
from istio_hsm_proto import inspection_v1_pb2 as inspection
from istio_hsm_proto import kms_istio_v1_pb2 as kms
from istio_hsm_proto import kms_istio_v1_pb2_grpc as kms_grpc
from istio_hsm_proto import kms_kubernetes_v2_pb2 as kubernetes
from istio_hsm_proto import kms_kubernetes_v2_pb2_grpc as kubernetes_grpc
from istio_hsm_proto import rotation_v1_pb2 as rotation
from istio_hsm_proto import signing_v1_pb2 as signing
from istio_hsm_proto import signing_v1_pb2_grpc as signing_grpc
from tests.support import pki

KEK = "bench"
_NEW_KEK = b"bench-new"
_KEY = b"bench-ecdsa-p256"
_SEED = bytes(32)
"""What the API server has encrypted: the seed of its own keys."""


def prepare(channel: grpc.Channel) -> Mapping[str, Call]:
    """Make what they need, and return the calls by name. The plugin serves Kubernetes with KEK."""
    keys = kms_grpc.KeyManagementServiceStub(channel)
    plugin_calls.prepare(keys, signing_grpc.SigningServiceStub(channel))
    dek = plugin_calls.new_dek(keys)
    keys.GenerateKEK(kms.GenerateKEKRequest(kek_kid=_NEW_KEK))
    encrypt = kubernetes.EncryptRequest(plaintext=_SEED, uid="bench")
    sealed = kubernetes_grpc.KeyManagementServiceStub(channel).Encrypt(encrypt)
    root = kms.ImportCACertRequest(ca_cert_blob=pki.root("Bench Root").der)
    keys.ImportCACert(root)
    kek = kms.GenerateKEKRequest(kek_kid=KEK.encode())
    key = signing.GenerateSigningKeyRequest(key_id=_KEY, algorithm=signing.ECDSA_P256)
    rewrap = rotation.RewrapDEKRequest(
        old_kek_id=KEK.encode(), new_kek_id=_NEW_KEK, encrypted_dek_blob=dek
    )
    decrypt = kubernetes.DecryptRequest(
        ciphertext=sealed.ciphertext,
        uid="bench",
        key_id=sealed.key_id,
        annotations=sealed.annotations,
    )
    return {
        "GenerateKEK, one that is there": _call(kms, "GenerateKEK", kek),
        "GenerateSKey, AES-256": _call(kms, "GenerateSKey", _skey(dek, kms.AES, size=256)),
        "GenerateSKey, P-256": _call(kms, "GenerateSKey", _skey(dek, kms.ECC, curve=kms.P256)),
        "GenerateSKey, RSA-2048": _call(kms, "GenerateSKey", _skey(dek, kms.RSA, size=2048)),
        "ImportCACert, one that is there": _call(kms, "ImportCACert", root),
        "GenerateSigningKey, one that is there": _call(signing, "GenerateSigningKey", key),
        "GetPublicKey": _call(signing, "GetPublicKey", signing.GetPublicKeyRequest(key_id=_KEY)),
        "ListKeys, of 3": _call(signing, "ListKeys", signing.ListKeysRequest()),
        "Inspect": _call(inspection, "Inspect", inspection.InspectRequest()),
        "RewrapDEK": _call(rotation, "RewrapDEK", rewrap),
        "Kubernetes Status": _call(kubernetes, "Status", kubernetes.StatusRequest()),
        "Kubernetes Encrypt": _call(kubernetes, "Encrypt", encrypt),
        "Kubernetes Decrypt": _call(kubernetes, "Decrypt", decrypt),
    }


def _skey(
    dek: bytes,
    kind: kms.KeyKind.ValueType,
    *,
    size: int = 0,
    curve: kms.Curve.ValueType = kms.UNSUPPORTED,
) -> kms.GenerateSKeyRequest:
    return kms.GenerateSKeyRequest(
        kek_kid=KEK.encode(), encrypted_dek_blob=dek, kind=kind, size=size, curve=curve
    )


def _call(module: ModuleType, method: str, request: Message) -> Call:
    """Return a call of the module's only service."""
    (service,) = module.DESCRIPTOR.services_by_name.values()
    return Call(f"/{service.full_name}/{method}", request.SerializeToString())
