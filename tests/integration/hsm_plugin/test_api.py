"""Every call of the API on a real token."""

import hashlib
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from pkcs11 import Attribute, CertificateType, KeyType, ObjectClass, PKCS11Error

from istio_hsm_proto import kms_istio_v1_pb2 as kms
from istio_hsm_proto import signing_v1_pb2 as sign
from istio_hsm_proto.kms_istio_v1_pb2_grpc import KeyManagementServiceStub
from istio_hsm_proto.signing_v1_pb2_grpc import SigningServiceStub
from tests.support import pki, token_view
from tests.support import plugin as plugins
from tests.support.plugin import Plugin
from tests.support.softhsm import SoftHsm

KMS = "thalescpl.io.ekms.istio.v1.KeyManagementService"
SIGNING = "istiohsm.signing.v1.SigningService"
RESIDENT = {
    "rsa-2048": sign.RSA_2048,
    "rsa-3072": sign.RSA_3072,
    "rsa-4096": sign.RSA_4096,
    "ecdsa-p256": sign.ECDSA_P256,
    "ecdsa-p384": sign.ECDSA_P384,
}
HASHES: dict[int, hashes.HashAlgorithm] = {
    sign.RSA_PKCS1_SHA256: hashes.SHA256(),
    sign.RSA_PKCS1_SHA384: hashes.SHA384(),
    sign.RSA_PKCS1_SHA512: hashes.SHA512(),
    sign.ECDSA_SHA256: hashes.SHA256(),
    sign.ECDSA_SHA384: hashes.SHA384(),
}


# -- KEK and DEK ---------------------------------------------------------------------------


def test_a_kek_without_an_id_gets_a_random_uuid(keys: KeyManagementServiceStub) -> None:
    first, second = (keys.GenerateKEK(kms.GenerateKEKRequest()).kek_kid.decode() for _ in range(2))
    assert uuid.UUID(first).version == 4
    assert str(uuid.UUID(first)) == first
    assert first != second


def test_sixteen_simultaneous_calls_make_one_kek(plugin: Plugin, shared_hsm: SoftHsm) -> None:
    request = kms.GenerateKEKRequest(kek_kid=b"wanted-by-many")

    def ask(_: int) -> bytes:
        with plugin.keys() as stub:
            return stub.GenerateKEK(request).kek_kid

    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(ask, range(16))) == {b"wanted-by-many"}
    with token_view.viewed(shared_hsm) as view:
        assert len(view.objects(ObjectClass.SECRET_KEY, b"wanted-by-many")) == 1


def test_a_kek_has_the_references_label_and_never_leaves_the_token(
    kek_id: bytes, shared_hsm: SoftHsm
) -> None:
    with token_view.viewed(shared_hsm) as view:
        kek = view.the(ObjectClass.SECRET_KEY, kek_id)
        assert kek[Attribute.LABEL] == "k8s-kms-plugin-kek"
        assert kek[Attribute.KEY_TYPE] is KeyType.AES
        assert kek[Attribute.VALUE_LEN] == 32
        for attribute in ("TOKEN", "PRIVATE", "SENSITIVE", "NEVER_EXTRACTABLE", "LOCAL"):
            assert kek[Attribute[attribute]] is True, attribute
        assert kek[Attribute.EXTRACTABLE] is False


def test_two_deks_of_one_kek_differ(keys: KeyManagementServiceStub, kek_id: bytes) -> None:
    request = kms.GenerateDEKRequest(kek_kid=kek_id)
    first, second = (keys.GenerateDEK(request).encrypted_dek_blob for _ in range(2))
    assert first != second


@pytest.mark.parametrize(
    ("plaintext", "aad"),
    [
        (b"", b""),
        (b"hello mesh", b"cluster.local"),
        (b"\0" * (512 << 10), b"a" * (16 << 10)),
        (bytes(range(256)), bytes(range(256))),
    ],
    ids=["empty", "small", "the largest", "every byte"],
)
def test_what_is_encrypted_decrypts(
    keys: KeyManagementServiceStub, kek_id: bytes, dek_blob: bytes, plaintext: bytes, aad: bytes
) -> None:
    ciphertext = keys.AuthenticatedEncrypt(
        kms.AuthenticatedEncryptRequest(
            kek_kid=kek_id, encrypted_dek_blob=dek_blob, plaintext=plaintext, aad=aad
        )
    ).ciphertext
    response = keys.AuthenticatedDecrypt(
        kms.AuthenticatedDecryptRequest(
            kek_kid=kek_id, encrypted_dek_blob=dek_blob, ciphertext=ciphertext, aad=aad
        )
    )
    assert response.plaintext == plaintext


@pytest.mark.parametrize("size", [2048, 3072, 4096])
def test_a_private_key_of_each_size_is_made_and_loads(
    keys: KeyManagementServiceStub, kek_id: bytes, dek_blob: bytes, size: int
) -> None:
    blob = keys.GenerateSKey(
        kms.GenerateSKeyRequest(
            size=size, kind=kms.RSA, kek_kid=kek_id, encrypted_dek_blob=dek_blob
        )
    ).encrypted_skey_blob
    pem = keys.LoadSKey(
        kms.LoadSKeyRequest(kek_kid=kek_id, encrypted_dek_blob=dek_blob, encrypted_skey_blob=blob)
    ).plaintext_skey
    key = serialization.load_pem_private_key(pem, None)
    assert isinstance(key, rsa.RSAPrivateKey)
    assert key.key_size == size


# -- roots and chains ----------------------------------------------------------------------


def test_an_imported_root_verifies_chains_and_survives_a_restart(
    hsm: SoftHsm, folder: Path
) -> None:
    root = pki.root()
    mesh_ca = pki.intermediate(root)
    workload = pki.leaf(mesh_ca)
    requests = [
        kms.VerifyCertChainRequest(certificates=certificates)
        for certificates in (
            [root.pem, mesh_ca.pem, workload.der],
            [root.der, mesh_ca.der, workload.der],
            [mesh_ca.pem, root.der, workload.der],
            [mesh_ca.der, workload.der],
            [mesh_ca.der],
        )
    ]
    with plugins.running(hsm, folder) as plugin, plugin.keys() as stub:
        assert stub.ImportCACert(kms.ImportCACertRequest(ca_cert_blob=root.pem)).success
        for request in requests:
            assert stub.VerifyCertChain(request).successful_verification
    with plugins.running(hsm, folder) as plugin, plugin.keys() as stub:
        for request in requests:
            assert stub.VerifyCertChain(request).successful_verification


def test_an_imported_roots_name_constraints_hold_for_every_chain(
    hsm: SoftHsm, folder: Path
) -> None:
    only = x509.NameConstraints([x509.UniformResourceIdentifier("mesh.example.com")], None)
    root = pki.issue("Root", is_ca=True, usage=pki.CA_USAGE, extensions=[(only, True)])
    mesh_ca = pki.intermediate(root)

    def request(trust_domain: str) -> kms.VerifyCertChainRequest:
        uri = x509.UniformResourceIdentifier(f"spiffe://{trust_domain}/ns/a/sa/b")
        names = x509.SubjectAlternativeName([uri])
        workload = pki.issue("workload", mesh_ca, extensions=[(names, True)])
        return kms.VerifyCertChainRequest(certificates=[root.pem, mesh_ca.pem, workload.pem])

    with plugins.running(hsm, folder) as plugin, plugin.keys() as stub:
        assert stub.ImportCACert(kms.ImportCACertRequest(ca_cert_blob=root.pem)).success
        assert stub.VerifyCertChain(request("mesh.example.com")).successful_verification
        with pytest.raises(grpc.RpcError, match=r"do not permit spiffe://evil\.test"):
            stub.VerifyCertChain(request("evil.test"))


def test_a_root_is_imported_as_pem_or_der_and_stored_once(hsm: SoftHsm, folder: Path) -> None:
    root = pki.root()
    with plugins.running(hsm, folder) as plugin, plugin.keys() as stub:
        for blob in (root.pem, root.der, root.pem):
            assert stub.ImportCACert(kms.ImportCACertRequest(ca_cert_blob=blob)).success
        other = pki.root("Other Root")
        stub.ImportCACert(kms.ImportCACertRequest(ca_id=b"named", ca_cert_blob=other.der))
    with token_view.viewed(hsm) as view:
        kept = view.objects(ObjectClass.CERTIFICATE)
        assert sorted(entry[Attribute.VALUE] for entry in kept) == sorted([root.der, other.der])
        assert {entry[Attribute.LABEL] for entry in kept} == {"istio-hsm-root"}
        assert {entry[Attribute.ID] for entry in kept} == {
            root.certificate.fingerprint(hashes.SHA256()).hex().encode(),
            b"named",
        }


@pytest.mark.parametrize(
    "large",
    [{Attribute.VALUE: bytes(170_000)}, {Attribute.ID: b"i" * 170_000}],
    ids=["value", "id"],
)
def test_a_root_that_is_larger_than_any_is_refused_and_ends_no_worker(
    hsm: SoftHsm, folder: Path, large: dict[Attribute, bytes]
) -> None:
    root = pki.root()
    template = {
        Attribute.CLASS: ObjectClass.CERTIFICATE,
        Attribute.CERTIFICATE_TYPE: CertificateType.X_509,
        Attribute.TOKEN: True,
        Attribute.LABEL: "istio-hsm-root",
        Attribute.ID: b"large",
        Attribute.SUBJECT: root.certificate.subject.public_bytes(),
        Attribute.VALUE: root.der,
    }
    with token_view.viewed(hsm) as view:
        view.session.create_object(template | large)
    verify = kms.VerifyCertChainRequest(certificates=[root.pem, pki.issue("CA", root).pem])
    with plugins.running(hsm, folder) as plugin, plugin.keys() as stub:
        assert stub.ImportCACert(kms.ImportCACertRequest(ca_cert_blob=root.pem)).success
        with pytest.raises(grpc.RpcError, match="in the token has a value of 170000") as caught:
            stub.VerifyCertChain(verify)
        assert cast("grpc.Call", caught.value).code() is grpc.StatusCode.FAILED_PRECONDITION
        assert plugin.events("worker.ended") == []
        assert plugin.health() == plugins.SERVING


# -- resident keys -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resident(signing: SigningServiceStub) -> dict[str, sign.SigningKey]:
    """One key of each algorithm."""
    return {
        name: signing.GenerateSigningKey(
            sign.GenerateSigningKeyRequest(key_id=f"api-{name}".encode(), algorithm=algorithm)
        ).key
        for name, algorithm in RESIDENT.items()
    }


@pytest.mark.parametrize("name", RESIDENT)
def test_a_resident_key_signs_and_its_public_half_verifies(
    signing: SigningServiceStub, resident: dict[str, sign.SigningKey], name: str
) -> None:
    key = resident[name]
    public = serialization.load_der_public_key(key.public_key)
    fitting = [
        algorithm
        for algorithm in HASHES
        if sign.SignatureAlgorithm.Name(algorithm).startswith(name[:3].upper())  # type: ignore[arg-type] # enum values are ints
    ]
    assert len(fitting) in (2, 3)
    for algorithm in fitting:
        digest = hashlib.new(HASHES[algorithm].name, b"message").digest()
        signature = signing.Sign(
            sign.SignRequest(key_id=key.key_id, algorithm=algorithm, digest=digest)  # type: ignore[arg-type] # as above
        ).signature
        for message in (b"message", b"another message"):
            try:
                if isinstance(public, rsa.RSAPublicKey):
                    public.verify(signature, message, padding.PKCS1v15(), HASHES[algorithm])
                else:
                    assert isinstance(public, ec.EllipticCurvePublicKey)
                    public.verify(signature, message, ec.ECDSA(HASHES[algorithm]))
                verified = True
            except InvalidSignature:
                verified = False
            assert verified is (message == b"message")


@pytest.mark.parametrize("name", RESIDENT)
def test_a_resident_key_can_never_leave_the_token(
    resident: dict[str, sign.SigningKey], shared_hsm: SoftHsm, name: str
) -> None:
    with token_view.viewed(shared_hsm) as view:
        private = view.the(ObjectClass.PRIVATE_KEY, resident[name].key_id)
        for attribute in ("TOKEN", "PRIVATE", "SENSITIVE", "ALWAYS_SENSITIVE", "NEVER_EXTRACTABLE"):
            assert private[Attribute[attribute]] is True, attribute
        for attribute in ("EXTRACTABLE", "DECRYPT", "UNWRAP", "DERIVE"):
            assert private[Attribute[attribute]] is False, attribute
        assert private[Attribute.LABEL] == "istio-hsm-signing-key"
        secret = Attribute.PRIVATE_EXPONENT if private.key_type is KeyType.RSA else Attribute.VALUE
        with pytest.raises(PKCS11Error):
            _ = private[secret]


@pytest.mark.parametrize("name", RESIDENT)
def test_a_resident_key_is_made_once_and_found_by_its_id(
    signing: SigningServiceStub, resident: dict[str, sign.SigningKey], name: str
) -> None:
    key = resident[name]
    again = signing.GenerateSigningKey(
        sign.GenerateSigningKeyRequest(key_id=key.key_id, algorithm=RESIDENT[name])
    )
    assert (again.key, again.created) == (key, False)
    assert signing.GetPublicKey(sign.GetPublicKeyRequest(key_id=key.key_id)).key == key


def test_a_resident_key_without_an_id_gets_a_random_uuid(signing: SigningServiceStub) -> None:
    response = signing.GenerateSigningKey(sign.GenerateSigningKeyRequest(algorithm=sign.ECDSA_P256))
    assert response.created
    assert uuid.UUID(response.key.key_id.decode()).version == 4


# -- health and reflection -----------------------------------------------------------------


def test_health_answers_for_the_server_and_for_each_service(plugin: Plugin) -> None:
    for service in ("", KMS, SIGNING):
        assert plugin.health(service) == plugins.SERVING
    assert plugin.health("no.such.Service") is None


def test_health_can_be_watched(plugin: Plugin) -> None:
    with plugin.channel() as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # its methods are missing in the types
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        assert next(iter(watch)).status == plugins.SERVING
        watch.cancel()


def test_reflection_lists_the_services_and_describes_them(plugin: Plugin) -> None:
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=KMS),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="no.such.Service"),
    ]
    with plugin.channel() as channel:
        stub: Any = cast("Any", reflection_pb2_grpc).ServerReflectionStub(channel)
        listed, described, unknown = stub.ServerReflectionInfo(iter(requests))
    names = {service.name for service in listed.list_services_response.service}
    assert {KMS, SIGNING, "grpc.health.v1.Health"} <= names
    assert b"GenerateKEK" in described.file_descriptor_response.file_descriptor_proto[0]
    assert unknown.error_response.error_code == 5
