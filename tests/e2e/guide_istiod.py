"""The guide's istiod at its start: what it reads of the CA's Secrets, and what it makes of them."""

import base64
import json
import os
from collections.abc import Mapping
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.x509.oid import NameOID
from kubernetes import client

from istio_hsm_proto import kms_istio_v1_pb2 as kms
from tests.support import vectors
from tests.support.plugin import Plugin

KEY, CSR, CERTIFICATE = "istio-ca-encrypted-key", "istio-ca-cert-csr", "istio-ca-cert"
TYPE = "istio.io/intermediate-ca"
TRUST_DOMAIN = "cluster.local"


def read(core: client.CoreV1Api, namespace: str, name: str) -> dict[str, bytes]:
    data = core.read_namespaced_secret(name, namespace).data or {}
    return {key: base64.b64decode(value) for key, value in data.items()}


def write(core: client.CoreV1Api, namespace: str, name: str, values: Mapping[str, bytes]) -> None:
    """Make a Secret as the guide's istiod does; the operator's is Opaque."""
    core.create_namespaced_secret(
        namespace,
        client.V1Secret(
            metadata=client.V1ObjectMeta(name=name),
            type="Opaque" if name == CERTIFICATE else TYPE,
            data={key: base64.b64encode(value).decode() for key, value in values.items()},
        ),
    )


def reference_secrets() -> dict[str, dict[str, bytes]]:
    """Return the two Secrets as an istiod with the reference plugin leaves them."""
    reference = vectors.interop()
    key = serialization.load_pem_private_key(reference.skey_pem, None)
    assert isinstance(key, rsa.RSAPrivateKey)
    subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, TRUST_DOMAIN)])
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    wrapped = {"kek-id": reference.kek_id, "encrypted-dek": reference.dek_blob}
    return {
        KEY: wrapped | {"encrypted-skey": reference.skey_blob},
        CSR: wrapped
        | {
            "csr-id": TRUST_DOMAIN.encode(),
            "encrypted-csr": _jwe(csr.public_bytes(serialization.Encoding.PEM)),
        },
    }


def decrypted_csr(plugin: Plugin, secret: Mapping[str, bytes]) -> x509.CertificateSigningRequest:
    """Return the CSR as `decrypt-csr` does."""
    with plugin.keys() as keys:
        reply = keys.AuthenticatedDecrypt(
            kms.AuthenticatedDecryptRequest(
                kek_kid=secret["kek-id"],
                encrypted_dek_blob=secret["encrypted-dek"],
                ciphertext=secret["encrypted-csr"],
                aad=secret["csr-id"],
            ),
            timeout=10,
        )
    return x509.load_pem_x509_csr(reply.plaintext)


def start(
    core: client.CoreV1Api, namespace: str, plugin: Plugin
) -> tuple[rsa.RSAPrivateKey, list[x509.Certificate]]:
    """Return the CA that it goes on with; an error where the real one would stay waiting.

    Read or make the key, LoadSKey, the CSR, the chain, VerifyCertChain: CONTRACTS of the guide.
    """
    sealed = read(core, namespace, KEY)
    assert set(sealed) == {"kek-id", "encrypted-dek", "encrypted-skey"}
    with plugin.keys() as keys:
        loaded = keys.LoadSKey(
            kms.LoadSKeyRequest(
                kek_kid=sealed["kek-id"],
                encrypted_dek_blob=sealed["encrypted-dek"],
                encrypted_skey_blob=sealed["encrypted-skey"],
            ),
            timeout=10,
        ).plaintext_skey
        assert loaded.startswith(b"-----BEGIN RSA PRIVATE KEY-----")
        key = serialization.load_pem_private_key(loaded, None)
        assert isinstance(key, rsa.RSAPrivateKey)

        asked = read(core, namespace, CSR)
        assert set(asked) == {"kek-id", "encrypted-dek", "csr-id", "encrypted-csr"}
        csr = decrypted_csr(plugin, asked)
        assert csr.public_key() == key.public_key()
        assert csr.subject.rfc4514_string() == f"O={asked['csr-id'].decode()}"
        for name in (KEY, CSR):
            assert core.read_namespaced_secret(name, namespace).type == TYPE

        chain = x509.load_pem_x509_certificates(
            read(core, namespace, CERTIFICATE)["cert-chain.pem"]
        )
        assert chain[0].public_key() == key.public_key()
        target = chain[0].public_bytes(serialization.Encoding.DER)
        request = kms.VerifyCertChainRequest(certificates=[target])
        assert keys.VerifyCertChain(request, timeout=10).successful_verification
    return key, chain


def _jwe(plaintext: bytes) -> bytes:
    """Return what the reference's AuthenticatedEncrypt makes under the vectors' DEK."""
    jwk: dict[str, Any] = json.loads(vectors.DEK_JWK)
    header = {
        "alg": "dir",
        "kid": jwk["kid"],
        "_thales_aad": _base64url(TRUST_DOMAIN.encode()),
        "enc": "A256GCM",
    }
    protected = _base64url(json.dumps(header, separators=(",", ":")).encode())
    iv = os.urandom(12)
    dek = base64.urlsafe_b64decode(jwk["k"] + "=")
    sealed = AESGCM(dek).encrypt(iv, plaintext, protected.encode())
    parts = (protected, "", _base64url(iv), _base64url(sealed[:-16]), _base64url(sealed[-16:]))
    return ".".join(parts).encode()


def _base64url(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()
