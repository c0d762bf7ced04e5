"""What the audit log says of a call: who, which key, what for, what came of it; never the data."""

from collections.abc import Callable, Mapping
from typing import Any

import grpc
from cryptography.hazmat.primitives import hashes

from hsm_plugin import kek_blobs, trust
from hsm_plugin.audit_chain import Field, Fields
from hsm_plugin.errors import HsmPluginError
from hsm_plugin.kek_blobs import Purpose
from hsm_plugin.keys import MAX_ID_BYTES, KekCipher
from hsm_plugin.rpcs import Rpc, rpc_of
from istio_hsm_proto import kms_istio_v1_pb2 as kms
from istio_hsm_proto import kms_kubernetes_v1beta1_pb2 as kms_v1
from istio_hsm_proto import kms_kubernetes_v2_pb2 as kms_v2
from istio_hsm_proto import rotation_v1_pb2 as rotation
from istio_hsm_proto import signing_v1_pb2 as signing

Caller = Mapping[str, str | int]
"""Who called, as far as it is known."""

_KEY_KINDS = {
    **dict.fromkeys(("kek_kid", "kek_id", "new_kek_id"), "kek"),
    "key_id": "signing-key",
    "ca_id": "root",
}


def fields_of(
    request: object,
    response: object,
    code: grpc.StatusCode,
    seconds: float,
    caller: Caller,
    cipher: KekCipher,
) -> Fields:
    """Return the fields of an entry; `response` is None when there is none.

    `cipher`: that the plugin wraps with.
    """
    rpc = rpc_of(request)
    kind, key = _key(rpc, request, response)
    fields: dict[str, Field] = {
        "service": rpc.service,
        "method": rpc.method,
        "key_kind": kind,
        "key": key,
        "mechanism": _mechanism(request, response, cipher),
        "outcome": code.name,
        "ms": round(1000 * seconds, 2),
        "caller": caller,
    }
    if isinstance(request, signing.SignBatchRequest):
        fields["digests"] = len(request.digests)
    if isinstance(request, rotation.RewrapDEKRequest):
        fields["old_key"] = _printable(request.old_kek_id)
    return {name: value for name, value in fields.items() if value != ""}


def stock_fields(kek_id: bytes, what: Mapping[str, Field], cipher: KekCipher) -> Fields:
    """Return the fields of an entry about DEKs that the plugin made ahead, for no call."""
    return {
        "key_kind": "kek",
        "key": _printable(kek_id),
        "mechanism": _CIPHERS[cipher],
        **what,
        "caller": {"kind": "plugin"},
    }


def _key(rpc: Rpc, request: object, response: object) -> tuple[str, str]:
    told = _TOLD_OTHERWISE.get(type(request))
    if told is not None:
        return told(request, response)
    named = getattr(request, rpc.key_field, b"") or _made(response)
    return _KEY_KINDS.get(rpc.key_field, ""), _printable(named)


def _made(response: object) -> bytes | str:
    """Return the id that the plugin chose itself."""
    match response:
        case kms.GenerateKEKResponse():
            return response.kek_kid
        case signing.GenerateSigningKeyResponse():
            return response.key.key_id
    return b""


def _root(request: kms.ImportCACertRequest, _: object) -> tuple[str, str]:
    ca_id = request.ca_id
    return "root", _printable(ca_id) if ca_id else _fingerprint(request.ca_cert_blob)


_TOLD_OTHERWISE: dict[type, Callable[[Any, Any], tuple[str, str]]] = {
    kms.ImportCACertRequest: _root,
    kms_v1.EncryptRequest: lambda _, response: ("kek", _kek_of(getattr(response, "cipher", b""))),
    kms_v1.DecryptRequest: lambda request, _: ("kek", _kek_of(request.cipher)),
    kms_v2.EncryptRequest: lambda _, response: ("kek", getattr(response, "key_id", "")),
    kms_v2.StatusRequest: lambda _, response: ("kek", getattr(response, "key_id", "")),
    kms_v2.DecryptRequest: lambda request, _: ("kek", _printable(request.key_id)),
}
"""Request -> what returns the kind and the id of its key, where no field of it is the id."""

_SCHEMES = {number: name for name, number in signing.SignatureAlgorithm.items()}
_ALGORITHMS = {number: name for name, number in signing.KeyAlgorithm.items()}
_KINDS = {number: name for name, number in kms.KeyKind.items()}
_CIPHERS = {KekCipher.GCM: "AES-256-GCM", KekCipher.CBC: "AES-256-CBC-HMAC-SHA256"}
_MECHANISMS: dict[type, Callable[[Any], str]] = {
    signing.SignRequest: lambda it: _SCHEMES.get(it.algorithm, str(it.algorithm)),
    signing.SignBatchRequest: lambda it: _SCHEMES.get(it.algorithm, str(it.algorithm)),
    signing.GenerateSigningKeyRequest: lambda it: _ALGORITHMS.get(it.algorithm, str(it.algorithm)),
    kms.GenerateKEKRequest: lambda _: "AES-256",
    kms.GenerateSKeyRequest: lambda it: f"{_KINDS.get(it.kind, it.kind)}-{it.size}",
}
_MAKES: tuple[type, ...] = (
    *(kms.GenerateDEKRequest, rotation.RewrapDEKRequest),
    *(kms_v1.EncryptRequest, kms_v2.EncryptRequest),
)
"""What a KEK encrypts for, with the plugin's own cipher."""
_OPENS: dict[type, Callable[[Any], bytes]] = {
    kms.AuthenticatedEncryptRequest: lambda it: it.encrypted_dek_blob,
    kms.AuthenticatedDecryptRequest: lambda it: it.encrypted_dek_blob,
    kms.LoadSKeyRequest: lambda it: it.encrypted_dek_blob,
    kms_v1.DecryptRequest: lambda it: it.cipher,
    kms_v2.DecryptRequest: lambda it: it.ciphertext,
}
"""Request -> the blob that a KEK decrypts for it, whose header names its cipher."""


def _mechanism(request: object, response: object, cipher: KekCipher) -> str:
    of, blob = _MECHANISMS.get(type(request)), _OPENS.get(type(request))
    if of is not None:
        return of(request)
    if blob is not None:
        opened = kek_blobs.cipher_of(blob(request))
        return _CIPHERS[opened] if opened else ""
    if isinstance(response, rotation.RewrapDEKResponse):
        made = kek_blobs.cipher_of(response.encrypted_dek_blob)
        return _CIPHERS[made] if made else ""
    return _CIPHERS[cipher] if isinstance(request, _MAKES) else ""


def _kek_of(ciphertext: bytes) -> str:
    try:
        return _printable(kek_blobs.parse(ciphertext, Purpose.KUBERNETES, "the ciphertext").kek_id)
    except HsmPluginError:
        return ""


def _fingerprint(blob: bytes) -> str:
    try:
        root = trust.load_certificate(blob, "the CA certificate")
    except HsmPluginError:
        return ""
    return root.fingerprint(hashes.SHA256()).hex()


def _printable(identifier: bytes | str) -> str:
    """Return the id as text of visible ASCII, cut to a little more than an id may have."""
    raw = identifier.encode() if isinstance(identifier, str) else identifier
    return raw[: MAX_ID_BYTES + 1].decode("ascii", errors="backslashreplace")
