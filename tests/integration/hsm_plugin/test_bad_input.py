"""Bad input to every call has one precise status, and the server serves on."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from hsm_plugin.envelope import protected_header
from istio_hsm_proto import kms_istio_v1_pb2 as kms
from istio_hsm_proto import signing_v1_pb2 as sign
from istio_hsm_proto.kms_istio_v1_pb2_grpc import KeyManagementServiceStub
from istio_hsm_proto.signing_v1_pb2_grpc import SigningServiceStub
from tests.support import pki
from tests.support import plugin as plugins
from tests.support.pki import Issued
from tests.support.plugin import Plugin
from tests.support.softhsm import SoftHsm

INVALID = grpc.StatusCode.INVALID_ARGUMENT
MISSING = grpc.StatusCode.NOT_FOUND
FORBIDDEN = grpc.StatusCode.FAILED_PRECONDITION
UNKNOWN = grpc.StatusCode.UNIMPLEMENTED
TOO_MUCH = grpc.StatusCode.RESOURCE_EXHAUSTED

AAD = b"mesh.local"
BEYOND_MESSAGE = b"x" * (3 << 20)
BEYOND_BLOB = b"x" * ((1 << 20) + 1)


@dataclass(frozen=True, slots=True)
class Material:
    """What sound calls were made with."""

    kek: bytes
    other_kek: bytes
    dek: bytes
    second_dek: bytes
    other_dek: bytes
    skey: bytes
    ciphertext: bytes
    root: Issued
    mesh_ca: Issued
    workload: Issued


@pytest.fixture(scope="module")
def material(
    keys: KeyManagementServiceStub, signing: SigningServiceStub, kek_id: bytes, dek_blob: bytes
) -> Material:
    other_kek = keys.GenerateKEK(kms.GenerateKEKRequest(kek_kid=b"other-kek")).kek_kid
    second, other = (
        keys.GenerateDEK(kms.GenerateDEKRequest(kek_kid=kek)).encrypted_dek_blob
        for kek in (kek_id, other_kek)
    )
    skey = keys.GenerateSKey(
        kms.GenerateSKeyRequest(
            size=2048, kind=kms.RSA, kek_kid=kek_id, encrypted_dek_blob=dek_blob
        )
    ).encrypted_skey_blob
    ciphertext = keys.AuthenticatedEncrypt(
        kms.AuthenticatedEncryptRequest(
            kek_kid=kek_id, encrypted_dek_blob=dek_blob, plaintext=b"plaintext", aad=AAD
        )
    ).ciphertext
    root = pki.root("Imported Root")
    mesh_ca = pki.intermediate(root)
    keys.ImportCACert(kms.ImportCACertRequest(ca_id=b"imported", ca_cert_blob=root.pem))
    for key_id, algorithm in ((b"bad-rsa", sign.RSA_2048), (b"bad-ec", sign.ECDSA_P256)):
        signing.GenerateSigningKey(
            sign.GenerateSigningKeyRequest(key_id=key_id, algorithm=algorithm)
        )
    return Material(
        kek=kek_id,
        other_kek=other_kek,
        dek=dek_blob,
        second_dek=second,
        other_dek=other,
        skey=skey,
        ciphertext=ciphertext,
        root=root,
        mesh_ca=mesh_ca,
        workload=pki.leaf(mesh_ca),
    )


def tampered(blob: bytes, part: int = 3) -> bytes:
    """Return the blob with the first character of one part changed."""
    parts = blob.split(b".")
    parts[part] = (b"B" if parts[part][:1] != b"B" else b"C") + parts[part][1:]
    return b".".join(parts)


def rewrapped(blob: bytes, kek: bytes) -> bytes:
    """Return the blob under a header that claims another KEK."""
    return b".".join((protected_header(kek.decode()), *blob.split(b".")[1:]))


def load(m: Material, **changed: bytes) -> kms.LoadSKeyRequest:
    sound = {"kek_kid": m.kek, "encrypted_dek_blob": m.dek, "encrypted_skey_blob": m.skey}
    return kms.LoadSKeyRequest(**sound | changed)


def generate(m: Material, **changed: object) -> kms.GenerateSKeyRequest:
    sound: dict[str, object] = {
        "size": 2048,
        "kind": kms.RSA,
        "kek_kid": m.kek,
        "encrypted_dek_blob": m.dek,
    }
    return kms.GenerateSKeyRequest(**sound | changed)  # type: ignore[arg-type] # varied on purpose


def encrypt(m: Material, **changed: bytes) -> kms.AuthenticatedEncryptRequest:
    sound = {"kek_kid": m.kek, "encrypted_dek_blob": m.dek, "plaintext": b"plaintext", "aad": AAD}
    return kms.AuthenticatedEncryptRequest(**sound | changed)


def decrypt(m: Material, **changed: bytes) -> kms.AuthenticatedDecryptRequest:
    sound = {
        "kek_kid": m.kek,
        "encrypted_dek_blob": m.dek,
        "ciphertext": m.ciphertext,
        "aad": AAD,
    }
    return kms.AuthenticatedDecryptRequest(**sound | changed)


def chain(*certificates: bytes) -> kms.VerifyCertChainRequest:
    return kms.VerifyCertChainRequest(certificates=certificates)


def root(blob: bytes, ca_id: bytes = b"") -> kms.ImportCACertRequest:
    return kms.ImportCACertRequest(ca_id=ca_id, ca_cert_blob=blob)


def refused(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    """Return the status and the details of a call that fails."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details() or ""


_BAD_DEKS: list[tuple[str, Callable[[Material], dict[str, bytes]], grpc.StatusCode, str]] = [
    ("no KEK id", lambda _: {"kek_kid": b""}, INVALID, "KEK id is empty"),
    ("a KEK id too long", lambda _: {"kek_kid": b"k" * 129}, INVALID, "KEK id has 129 bytes"),
    ("a binary KEK id", lambda _: {"kek_kid": b"\xff\0"}, INVALID, "not visible ASCII"),
    ("another KEK", lambda m: {"kek_kid": m.other_kek}, INVALID, "wrapped by another KEK"),
    (
        "an unknown KEK",
        lambda m: {"kek_kid": b"gone", "encrypted_dek_blob": rewrapped(m.dek, b"gone")},
        MISSING,
        'no object "k8s-kms-plugin-kek" has the id "gone"',
    ),
    (
        "a DEK that claims another KEK",
        lambda m: {"kek_kid": m.other_kek, "encrypted_dek_blob": rewrapped(m.dek, m.other_kek)},
        INVALID,
        "does not authenticate",
    ),
    ("no DEK", lambda _: {"encrypted_dek_blob": b""}, INVALID, "not a compact JWE"),
    ("a huge DEK", lambda _: {"encrypted_dek_blob": BEYOND_BLOB}, INVALID, "more than 1048576"),
    ("a DEK of garbage", lambda _: {"encrypted_dek_blob": b"\0.\0.\0"}, INVALID, "compact JWE"),
    (
        "a tampered DEK",
        lambda m: {"encrypted_dek_blob": tampered(m.dek)},
        INVALID,
        "does not authenticate",
    ),
    (
        "a DEK with a tampered tag",
        lambda m: {"encrypted_dek_blob": tampered(m.dek, 4)},
        INVALID,
        "does not authenticate",
    ),
    (
        "a private key as the DEK",
        lambda m: {"encrypted_dek_blob": m.skey},
        INVALID,
        "wrapped by another KEK",
    ),
    (
        "a request that is too large",
        lambda _: {"encrypted_dek_blob": BEYOND_MESSAGE},
        TOO_MUCH,
        "larger than max",
    ),
]


@pytest.mark.parametrize("method", ["GenerateSKey", "LoadSKey", "Encrypt", "Decrypt"])
@pytest.mark.parametrize(
    ("change", "status", "words"), [row[1:] for row in _BAD_DEKS], ids=[row[0] for row in _BAD_DEKS]
)
def test_a_call_with_a_bad_key_is_refused(
    keys: KeyManagementServiceStub,
    material: Material,
    method: str,
    change: Callable[[Material], dict[str, bytes]],
    status: grpc.StatusCode,
    words: str,
) -> None:
    changed = change(material)
    calls: dict[str, Callable[[], object]] = {
        "GenerateSKey": lambda: keys.GenerateSKey(generate(material, **changed)),
        "LoadSKey": lambda: keys.LoadSKey(load(material, **changed)),
        "Encrypt": lambda: keys.AuthenticatedEncrypt(encrypt(material, **changed)),
        "Decrypt": lambda: keys.AuthenticatedDecrypt(decrypt(material, **changed)),
    }
    code, details = refused(calls[method])
    assert code is status
    assert words in details


_Call = Callable[[KeyManagementServiceStub, Material], object]
_BAD_CALLS: list[tuple[str, _Call, grpc.StatusCode, str]] = [
    (
        "GenerateKEK with a long id",
        lambda s, _: s.GenerateKEK(kms.GenerateKEKRequest(kek_kid=b"k" * 129)),
        INVALID,
        "KEK id has 129 bytes (at most 128 are allowed)",
    ),
    (
        "GenerateKEK with a binary id",
        lambda s, _: s.GenerateKEK(kms.GenerateKEKRequest(kek_kid=b"\xff")),
        INVALID,
        "KEK id is not visible ASCII",
    ),
    (
        "GenerateKEK with a huge id",
        lambda s, _: s.GenerateKEK(kms.GenerateKEKRequest(kek_kid=BEYOND_MESSAGE)),
        TOO_MUCH,
        "larger than max",
    ),
    (
        "GenerateDEK without a KEK",
        lambda s, _: s.GenerateDEK(kms.GenerateDEKRequest()),
        INVALID,
        "KEK id is empty",
    ),
    (
        "GenerateDEK of an unknown KEK",
        lambda s, _: s.GenerateDEK(kms.GenerateDEKRequest(kek_kid=b"gone")),
        MISSING,
        'has the id "gone"',
    ),
    (
        "GenerateSKey of no kind",
        lambda s, m: s.GenerateSKey(generate(m, kind=kms.UNKNOWN)),
        UNKNOWN,
        "keys of kind UNKNOWN are not made here",
    ),
    (
        "GenerateSKey of ECC without a curve",
        lambda s, m: s.GenerateSKey(generate(m, kind=kms.ECC, size=256)),
        UNKNOWN,
        "the curve is missing or unknown",
    ),
    (
        "GenerateSKey of a curve from the future",
        lambda s, m: s.GenerateSKey(generate(m, kind=kms.ECC, curve=99)),
        UNKNOWN,
        "the curve is missing or unknown",
    ),
    (
        "GenerateSKey of a kind from the future",
        lambda s, m: s.GenerateSKey(generate(m, kind=99)),
        UNKNOWN,
        "keys of kind 99 are not made here",
    ),
    *(
        (
            f"GenerateSKey of {size} bits",
            lambda s, m, size=size: s.GenerateSKey(generate(m, size=size)),
            INVALID,
            f"RSA keys of {size} bits are not made",
        )
        for size in (0, -1, 1024, 2047, 1 << 62)
    ),
    (
        "LoadSKey without a key",
        lambda s, m: s.LoadSKey(load(m, encrypted_skey_blob=b"")),
        INVALID,
        "not a compact JWE",
    ),
    (
        "LoadSKey of a tampered key",
        lambda s, m: s.LoadSKey(load(m, encrypted_skey_blob=tampered(m.skey))),
        INVALID,
        "does not authenticate",
    ),
    (
        "LoadSKey of a huge key",
        lambda s, m: s.LoadSKey(load(m, encrypted_skey_blob=BEYOND_BLOB)),
        INVALID,
        "more than 1048576",
    ),
    (
        "LoadSKey with another DEK of the same KEK",
        lambda s, m: s.LoadSKey(load(m, encrypted_dek_blob=m.second_dek)),
        INVALID,
        "made with another DEK",
    ),
    (
        "LoadSKey with a DEK of another KEK",
        lambda s, m: s.LoadSKey(load(m, kek_kid=m.other_kek, encrypted_dek_blob=m.other_dek)),
        INVALID,
        "made with another DEK",
    ),
    (
        "LoadSKey of a ciphertext that is bound to an aad",
        lambda s, m: s.LoadSKey(load(m, encrypted_skey_blob=m.ciphertext)),
        INVALID,
        "additional data does not match",
    ),
    (
        "AuthenticatedEncrypt of too much",
        lambda s, m: s.AuthenticatedEncrypt(encrypt(m, plaintext=b"x" * ((512 << 10) + 1))),
        INVALID,
        "the plaintext has 524289 bytes",
    ),
    (
        "AuthenticatedEncrypt with too long an aad",
        lambda s, m: s.AuthenticatedEncrypt(encrypt(m, aad=b"x" * ((16 << 10) + 1))),
        INVALID,
        "the aad has 16385 bytes",
    ),
    (
        "AuthenticatedDecrypt with another aad",
        lambda s, m: s.AuthenticatedDecrypt(decrypt(m, aad=b"other.local")),
        INVALID,
        "additional data does not match",
    ),
    (
        "AuthenticatedDecrypt without its aad",
        lambda s, m: s.AuthenticatedDecrypt(decrypt(m, aad=b"")),
        INVALID,
        "additional data does not match",
    ),
    (
        "AuthenticatedDecrypt with too long an aad",
        lambda s, m: s.AuthenticatedDecrypt(decrypt(m, aad=b"x" * ((16 << 10) + 1))),
        INVALID,
        "the aad has 16385 bytes",
    ),
    (
        "AuthenticatedDecrypt of nothing",
        lambda s, m: s.AuthenticatedDecrypt(decrypt(m, ciphertext=b"")),
        INVALID,
        "not a compact JWE",
    ),
    *(
        (
            f"AuthenticatedDecrypt with a tampered {name}",
            lambda s, m, part=part: s.AuthenticatedDecrypt(
                decrypt(m, ciphertext=tampered(m.ciphertext, part))
            ),
            INVALID,
            "does not authenticate",
        )
        for name, part in (("iv", 2), ("body", 3), ("tag", 4))
    ),
    (
        "AuthenticatedDecrypt with another DEK",
        lambda s, m: s.AuthenticatedDecrypt(decrypt(m, encrypted_dek_blob=m.second_dek)),
        INVALID,
        "made with another DEK",
    ),
    (
        "ImportCACert of nothing",
        lambda s, _: s.ImportCACert(root(b"")),
        INVALID,
        "the CA certificate is empty",
    ),
    (
        "ImportCACert of garbage",
        lambda s, _: s.ImportCACert(root(b"garbage")),
        INVALID,
        "not a certificate in PEM or DER",
    ),
    (
        "ImportCACert of too much",
        lambda s, _: s.ImportCACert(root(b"x" * ((64 << 10) + 1))),
        INVALID,
        "more than 65536",
    ),
    (
        "ImportCACert of a huge message",
        lambda s, _: s.ImportCACert(root(BEYOND_MESSAGE)),
        TOO_MUCH,
        "larger than max",
    ),
    (
        "ImportCACert of two roots",
        lambda s, m: s.ImportCACert(root(m.root.pem + pki.root("Second").pem)),
        INVALID,
        "more than one certificate",
    ),
    (
        "ImportCACert of an intermediate",
        lambda s, m: s.ImportCACert(root(m.mesh_ca.pem)),
        INVALID,
        "not self-signed",
    ),
    (
        "ImportCACert of a leaf",
        lambda s, m: s.ImportCACert(root(m.workload.der)),
        INVALID,
        "is not a CA",
    ),
    (
        "ImportCACert of an expired root",
        lambda s, _: s.ImportCACert(
            root(pki.root(valid_until=pki.MOMENT - timedelta(minutes=1)).pem)
        ),
        INVALID,
        "expired at",
    ),
    (
        "ImportCACert of a tampered root",
        lambda s, m: s.ImportCACert(root(pki.with_broken_signature(m.root).der)),
        INVALID,
        "not self-signed",
    ),
    (
        "ImportCACert with a binary id",
        lambda s, m: s.ImportCACert(root(m.root.pem, b"\xff")),
        INVALID,
        "CA id is not visible ASCII",
    ),
    (
        "ImportCACert under a taken id",
        lambda s, _: s.ImportCACert(root(pki.root().pem, b"imported")),
        FORBIDDEN,
        "another root certificate",
    ),
    (
        "ImportCACert of a certificate request",
        lambda s, _: s.ImportCACert(root(pki.request())),
        INVALID,
        "not a certificate in PEM or DER",
    ),
    (
        "ImportCACert of an unreadable name",
        lambda s, m: s.ImportCACert(root(pki.with_unreadable_name(m.root, "Imported Root"))),
        INVALID,
        "not a certificate in PEM or DER",
    ),
    (
        "VerifyCertChain of nothing",
        lambda s, _: s.VerifyCertChain(chain()),
        INVALID,
        "no certificate was given",
    ),
    (
        "VerifyCertChain of an empty certificate",
        lambda s, m: s.VerifyCertChain(chain(m.root.der, b"")),
        INVALID,
        "certificate 2 is empty",
    ),
    (
        "VerifyCertChain of garbage",
        lambda s, m: s.VerifyCertChain(chain(b"garbage", m.mesh_ca.der)),
        INVALID,
        "certificate 1 is not a certificate",
    ),
    (
        "VerifyCertChain of a huge certificate",
        lambda s, _: s.VerifyCertChain(chain(b"x" * ((64 << 10) + 1))),
        INVALID,
        "certificate 1 has 65537 bytes",
    ),
    (
        "VerifyCertChain of too many",
        lambda s, m: s.VerifyCertChain(chain(*[m.mesh_ca.der] * 17)),
        INVALID,
        "more than 16",
    ),
    (
        "VerifyCertChain of a PEM bundle as one certificate",
        lambda s, m: s.VerifyCertChain(chain(m.root.pem + m.mesh_ca.pem, m.workload.der)),
        INVALID,
        "certificate 1 holds more than one certificate",
    ),
    (
        "VerifyCertChain to another root",
        lambda s, _: s.VerifyCertChain(chain(pki.leaf(pki.root("Stranger")).der)),
        INVALID,
        "neither imported nor in the chain",
    ),
    (
        "VerifyCertChain to another root of the same name",
        lambda s, _: s.VerifyCertChain(chain(pki.leaf(pki.root("Imported Root")).der)),
        INVALID,
        "not made by any issuer of that name",
    ),
    (
        "VerifyCertChain without its intermediate",
        lambda s, m: s.VerifyCertChain(chain(m.root.der, m.workload.der)),
        INVALID,
        "neither imported nor in the chain",
    ),
    (
        "VerifyCertChain of a tampered target",
        lambda s, m: s.VerifyCertChain(
            chain(m.mesh_ca.der, pki.with_broken_signature(m.workload).der)
        ),
        INVALID,
        "not made by any issuer",
    ),
    (
        "VerifyCertChain of an expired target",
        lambda s, m: s.VerifyCertChain(
            chain(
                m.mesh_ca.der,
                pki.issue("old", m.mesh_ca, valid_until=pki.MOMENT - timedelta(minutes=1)).der,
            )
        ),
        INVALID,
        '"CN=old" expired at',
    ),
    (
        "VerifyCertChain of a target of the future",
        lambda s, m: s.VerifyCertChain(
            chain(
                m.mesh_ca.der,
                pki.issue("new", m.mesh_ca, valid_from=pki.MOMENT + timedelta(hours=12)).der,
            )
        ),
        INVALID,
        '"CN=new" is not valid before',
    ),
    (
        "VerifyCertChain through a leaf",
        lambda s, m: s.VerifyCertChain(
            chain(m.mesh_ca.der, m.workload.der, pki.leaf(m.workload, "forged").der)
        ),
        INVALID,
        "is not a CA",
    ),
]


@pytest.mark.parametrize(
    ("call", "status", "words"), [row[1:] for row in _BAD_CALLS], ids=[row[0] for row in _BAD_CALLS]
)
def test_a_bad_call_is_refused(
    keys: KeyManagementServiceStub,
    material: Material,
    call: _Call,
    status: grpc.StatusCode,
    words: str,
) -> None:
    code, details = refused(lambda: call(keys, material))
    assert code is status, details
    assert words in details


_SignCall = Callable[[SigningServiceStub], object]
_BAD_SIGNING: list[tuple[str, _SignCall, grpc.StatusCode, str]] = [
    (
        "GenerateSigningKey without an algorithm",
        lambda s: s.GenerateSigningKey(sign.GenerateSigningKeyRequest(key_id=b"k")),
        INVALID,
        "key algorithm is missing or unknown",
    ),
    (
        "GenerateSigningKey with an algorithm from the future",
        lambda s: s.GenerateSigningKey(
            sign.GenerateSigningKeyRequest(key_id=b"k", algorithm=99)  # type: ignore[arg-type] # the fault
        ),
        INVALID,
        "key algorithm is missing or unknown",
    ),
    (
        "GenerateSigningKey with a binary id",
        lambda s: s.GenerateSigningKey(
            sign.GenerateSigningKeyRequest(key_id=b"\0", algorithm=sign.ECDSA_P256)
        ),
        INVALID,
        "key id is not visible ASCII",
    ),
    (
        "GenerateSigningKey with a long id",
        lambda s: s.GenerateSigningKey(
            sign.GenerateSigningKeyRequest(key_id=b"k" * 129, algorithm=sign.ECDSA_P256)
        ),
        INVALID,
        "key id has 129 bytes",
    ),
    (
        "GenerateSigningKey of a taken id with another algorithm",
        lambda s: s.GenerateSigningKey(
            sign.GenerateSigningKeyRequest(key_id=b"bad-ec", algorithm=sign.RSA_2048)
        ),
        FORBIDDEN,
        "exists as ecdsa-p256, not rsa-2048",
    ),
    (
        "GetPublicKey without an id",
        lambda s: s.GetPublicKey(sign.GetPublicKeyRequest()),
        INVALID,
        "key id is empty",
    ),
    (
        "GetPublicKey of an unknown id",
        lambda s: s.GetPublicKey(sign.GetPublicKeyRequest(key_id=b"gone")),
        MISSING,
        'has the id "gone"',
    ),
    (
        "GetPublicKey of a KEK",
        lambda s: s.GetPublicKey(sign.GetPublicKeyRequest(key_id=b"other-kek")),
        MISSING,
        'has the id "other-kek"',
    ),
    (
        "Sign without an algorithm",
        lambda s: s.Sign(sign.SignRequest(key_id=b"bad-ec", digest=b"d" * 32)),
        INVALID,
        "signature algorithm is missing or unknown",
    ),
    (
        "Sign without an id",
        lambda s: s.Sign(sign.SignRequest(algorithm=sign.ECDSA_SHA256, digest=b"d" * 32)),
        INVALID,
        "key id is empty",
    ),
    (
        "Sign with an unknown key",
        lambda s: s.Sign(
            sign.SignRequest(key_id=b"gone", algorithm=sign.ECDSA_SHA256, digest=b"d" * 32)
        ),
        MISSING,
        'has the id "gone"',
    ),
    *(
        (
            f"Sign of a digest of {size} bytes",
            lambda s, size=size: s.Sign(
                sign.SignRequest(key_id=b"bad-ec", algorithm=sign.ECDSA_SHA256, digest=b"d" * size)
            ),
            INVALID,
            f"the digest has {size} bytes instead of 32",
        )
        for size in (0, 31, 33, 48, 1 << 20)
    ),
    (
        "Sign of a huge message",
        lambda s: s.Sign(
            sign.SignRequest(key_id=b"bad-ec", algorithm=sign.ECDSA_SHA256, digest=BEYOND_MESSAGE)
        ),
        TOO_MUCH,
        "larger than max",
    ),
    (
        "Sign by an EC key for RSA",
        lambda s: s.Sign(
            sign.SignRequest(key_id=b"bad-ec", algorithm=sign.RSA_PKCS1_SHA256, digest=b"d" * 32)
        ),
        FORBIDDEN,
        "cannot make rsa-pkcs1-sha256",
    ),
    (
        "Sign by an RSA key for ECDSA",
        lambda s: s.Sign(
            sign.SignRequest(key_id=b"bad-rsa", algorithm=sign.ECDSA_SHA256, digest=b"d" * 32)
        ),
        FORBIDDEN,
        "cannot make ecdsa-sha256",
    ),
]


@pytest.mark.usefixtures("material")
@pytest.mark.parametrize(
    ("call", "status", "words"),
    [row[1:] for row in _BAD_SIGNING],
    ids=[row[0] for row in _BAD_SIGNING],
)
def test_a_bad_signing_call_is_refused(
    signing: SigningServiceStub, call: _SignCall, status: grpc.StatusCode, words: str
) -> None:
    code, details = refused(lambda: call(signing))
    assert code is status, details
    assert words in details


def test_the_sound_calls_of_these_tables_are_answered(
    keys: KeyManagementServiceStub, material: Material
) -> None:
    assert keys.LoadSKey(load(material)).plaintext_skey
    assert keys.GenerateSKey(generate(material)).encrypted_skey_blob
    assert keys.AuthenticatedEncrypt(encrypt(material)).ciphertext
    assert keys.AuthenticatedDecrypt(decrypt(material)).plaintext == b"plaintext"
    sound = chain(material.root.pem, material.mesh_ca.der, material.workload.der)
    assert keys.VerifyCertChain(sound).successful_verification


def test_a_target_in_pem_is_read_as_well_as_one_in_der(
    keys: KeyManagementServiceStub, material: Material
) -> None:
    assert keys.VerifyCertChain(chain(material.mesh_ca.pem)).successful_verification
    assert keys.VerifyCertChain(chain(material.mesh_ca.der)).successful_verification


def test_the_hint_comes_apart_from_the_cause(
    keys: KeyManagementServiceStub, material: Material
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        keys.AuthenticatedDecrypt(decrypt(material, aad=b"other.local"))
    metadata: Any = caught.value.trailing_metadata()
    hint: bytes = dict(metadata)["hint-bin"]
    assert hint == b"pass the aad of the encryption; for a CSR it is the csr-id"
    assert (caught.value.details() or "").endswith(f"({hint.decode()})")


def test_an_unknown_method_is_unimplemented(plugin: Plugin) -> None:
    with plugin.channel() as channel:
        method: Any = channel.unary_unary("/thalescpl.io.ekms.istio.v1.KeyManagementService/Drop")
        assert refused(lambda: method(b""))[0] is UNKNOWN


def test_bytes_that_are_no_message_are_refused(plugin: Plugin) -> None:
    with plugin.channel() as channel:
        method: Any = channel.unary_unary(
            "/thalescpl.io.ekms.istio.v1.KeyManagementService/GenerateDEK"
        )
        code, details = refused(lambda: method(b"\xff\xff\xff"))
        assert (code, details) == (INVALID, "the request is no message of this method")
    assert "Traceback" not in plugin.text()


def test_a_chain_is_refused_while_no_root_is_imported(hsm: SoftHsm, folder: Path) -> None:
    root = pki.root()
    with plugins.running(hsm, folder) as plugin, plugin.keys() as stub:
        code, details = refused(lambda: stub.VerifyCertChain(chain(root.der)))
        assert code is FORBIDDEN
        assert "no root certificate is imported (run `hsm-plugin import-ca" in details
        stub.ImportCACert(kms.ImportCACertRequest(ca_cert_blob=root.pem))
        assert stub.VerifyCertChain(chain(root.der)).successful_verification
