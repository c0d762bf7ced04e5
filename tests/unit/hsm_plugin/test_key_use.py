"""What an audit entry says of each kind of call."""

import grpc
import pytest

from hsm_plugin import cbc_envelope, envelope
from hsm_plugin.key_use import fields_of, stock_fields
from hsm_plugin.keys import KekCipher, Sealed
from istio_hsm_proto import control_v1_pb2 as control
from istio_hsm_proto import kms_istio_v1_pb2 as kms
from istio_hsm_proto import kms_kubernetes_v1beta1_pb2 as kms_v1
from istio_hsm_proto import kms_kubernetes_v2_pb2 as kms_v2
from istio_hsm_proto import rotation_v1_pb2 as rotation
from istio_hsm_proto import signing_v1_pb2 as signing
from tests.support import pki

_GCM_BLOB = envelope.serialize(
    envelope.protected_header("kek"), Sealed(iv=bytes(16), ciphertext=b"x", tag=bytes(16))
)
_CBC_SEALED = Sealed(iv=bytes(16), ciphertext=bytes(16), tag=bytes(32))
_CBC_BLOB = envelope.serialize(cbc_envelope.protected_header(b"kek", "jwk+json", 16), _CBC_SEALED)
_KUBERNETES_BLOB = envelope.serialize(cbc_envelope.protected_header(b"kek", "JWT", 16), _CBC_SEALED)


@pytest.mark.parametrize(
    ("request_", "response", "told"),
    [
        (
            signing.SignRequest(key_id=b"ca", algorithm=signing.RSA_PSS_SHA256),
            None,
            ("signing-key", "ca", "RSA_PSS_SHA256"),
        ),
        (signing.SignRequest(key_id=b"ca", algorithm=99), None, ("signing-key", "ca", "99")),  # type: ignore[arg-type] # as a newer client may
        (
            signing.GenerateSigningKeyRequest(algorithm=signing.ED25519),
            signing.GenerateSigningKeyResponse(key=signing.SigningKey(key_id=b"new")),
            ("signing-key", "new", "ED25519"),
        ),
        (signing.DestroyKeyRequest(key_id=b"ca"), None, ("signing-key", "ca", None)),
        (signing.ListKeysRequest(), None, (None, None, None)),
        (
            kms.GenerateKEKRequest(),
            kms.GenerateKEKResponse(kek_kid=b"new"),
            ("kek", "new", "AES-256"),
        ),
        (kms.LoadSKeyRequest(kek_kid=b"kek"), None, ("kek", "kek", None)),
        (
            kms.LoadSKeyRequest(kek_kid=b"kek", encrypted_dek_blob=_GCM_BLOB),
            None,
            ("kek", "kek", "AES-256-GCM"),
        ),
        (
            kms.AuthenticatedDecryptRequest(kek_kid=b"kek", encrypted_dek_blob=_CBC_BLOB),
            None,
            ("kek", "kek", "AES-256-CBC-HMAC-SHA256"),
        ),
        (
            rotation.RewrapDEKRequest(old_kek_id=b"old", new_kek_id=b"new"),
            rotation.RewrapDEKResponse(encrypted_dek_blob=_CBC_BLOB),
            ("kek", "new", "AES-256-CBC-HMAC-SHA256"),
        ),
        (rotation.DestroyKEKRequest(kek_id=b"kek"), None, ("kek", "kek", None)),
        (
            kms.GenerateSKeyRequest(kek_kid=b"kek", kind=kms.RSA, size=2048),
            None,
            ("kek", "kek", "RSA-2048"),
        ),
        (kms.ImportCACertRequest(ca_id=b"root"), None, ("root", "root", None)),
        (kms.ImportCACertRequest(ca_cert_blob=b"no certificate"), None, ("root", None, None)),
        (
            kms_v2.EncryptRequest(plaintext=b"x"),
            kms_v2.EncryptResponse(key_id="kek"),
            ("kek", "kek", "AES-256-GCM"),
        ),
        (
            kms_v2.DecryptRequest(key_id="kek", ciphertext=_GCM_BLOB),
            None,
            ("kek", "kek", "AES-256-GCM"),
        ),
        (
            kms_v1.DecryptRequest(cipher=_KUBERNETES_BLOB),
            None,
            ("kek", "kek", "AES-256-CBC-HMAC-SHA256"),
        ),
        (kms_v1.DecryptRequest(cipher=b"nonsense"), None, ("kek", None, None)),
        (control.ReloadCredentialsRequest(), None, (None, None, None)),
    ],
)
def test_an_entry_names_the_key_and_what_it_was_used_for(
    request_: object, response: object, told: tuple[str | None, ...]
) -> None:
    fields = fields_of(request_, response, grpc.StatusCode.OK, 0.001, {"uid": 7}, KekCipher.GCM)
    assert (fields.get("key_kind"), fields.get("key"), fields.get("mechanism")) == told
    assert fields["caller"] == {"uid": 7}
    assert fields["outcome"] == "OK"
    assert fields["ms"] == 1.0


def test_an_imported_root_without_an_id_is_named_by_its_fingerprint() -> None:
    root = pki.root("Root")
    request = kms.ImportCACertRequest(ca_cert_blob=root.pem)
    fields = fields_of(request, None, grpc.StatusCode.OK, 0, {}, KekCipher.GCM)
    assert len(str(fields["key"])) == 64


def test_an_id_of_any_size_and_any_bytes_stays_short() -> None:
    request = signing.SignRequest(key_id=b"\xff\n" * 100_000)
    assert (
        len(str(fields_of(request, None, grpc.StatusCode.OK, 0, {}, KekCipher.GCM)["key"])) < 1000
    )


def test_what_a_kek_encrypts_is_told_with_the_cipher_that_the_plugin_wraps_with() -> None:
    request = kms.GenerateDEKRequest(kek_kid=b"kek")
    told = {
        cipher: fields_of(request, None, grpc.StatusCode.OK, 0, {}, cipher)["mechanism"]
        for cipher in KekCipher
    }
    assert told == {KekCipher.GCM: "AES-256-GCM", KekCipher.CBC: "AES-256-CBC-HMAC-SHA256"}


def test_a_rewrapped_dek_names_both_keks() -> None:
    request = rotation.RewrapDEKRequest(old_kek_id=b"old", new_kek_id=b"new")
    fields = fields_of(request, None, grpc.StatusCode.OK, 0, {}, KekCipher.GCM)
    assert (fields["old_key"], fields["key"]) == ("old", "new")


def test_deks_made_ahead_are_told_as_the_plugins_own_use_of_the_kek() -> None:
    assert stock_fields(b"kek\n", {"made": 3}, KekCipher.CBC) == {
        "key_kind": "kek",
        "key": "kek\n",
        "mechanism": "AES-256-CBC-HMAC-SHA256",
        "made": 3,
        "caller": {"kind": "plugin"},
    }
