"""The mesh's side of the demo: who issues tokens, and what a sidecar does with one."""

import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from istio_hsm_proto import istio_ca_pb2, istio_ca_pb2_grpc

ISSUER = "https://kubernetes.default.svc.cluster.local"
ISTIO_AUDIENCE = "istio-ca"
_CALL_SECONDS = 15


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def certificate_pem(self) -> bytes:
        """Return the certificate as PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def key_pem(self) -> bytes:
        """Return the private key as unencrypted PKCS#8 PEM."""
        return private_pem(self.key)


class TokenIssuer:
    """Signs tokens as the Kubernetes API server does for ServiceAccounts."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())

    def public_pem(self) -> str:
        """Return the verification key, as Vault's jwt method takes it."""
        return (
            self._key.public_key()
            .public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
            .decode()
        )

    def jwks(self) -> str:
        """Return the verification key as a JWKS (RFC 7517, section 5)."""
        key = jwt.algorithms.ECAlgorithm.to_jwk(self._key.public_key(), as_dict=True)
        return json.dumps({"keys": [{**key, "kid": "demo", "alg": "ES256", "use": "sig"}]})

    def token(self, namespace: str, account: str, audience: str) -> str:
        """Return a ServiceAccount's token, good for ten minutes."""
        now = int(time.time())
        claims = {
            "iss": ISSUER,
            "aud": [audience],
            "sub": f"system:serviceaccount:{namespace}:{account}",
            "iat": now,
            "nbf": now,
            "exp": now + 600,
            "kubernetes.io": {"namespace": namespace, "serviceaccount": {"name": account}},
        }
        return jwt.encode(claims, self._key, algorithm="ES256", headers={"kid": "demo"})


@dataclass(frozen=True, slots=True)
class Sidecar:
    """What istio-proxy's agent does: a key of its own, a CSR, a call to the CA."""

    ca_address: str
    ca_root: Path
    ca_name: str

    def by_token(self, token: str) -> tuple[list[str], ec.EllipticCurvePrivateKey]:
        """Return the chain answered to a token, and the key that never left the sidecar."""
        credentials = grpc.ssl_channel_credentials(self.ca_root.read_bytes())
        metadata = (("authorization", f"Bearer {token}"), ("clusterid", "Kubernetes"))
        return self._create(credentials, metadata)

    def by_certificate(
        self, chain: list[str], key: ec.EllipticCurvePrivateKey
    ) -> tuple[list[str], ec.EllipticCurvePrivateKey]:
        """Return a renewed chain: the certificate in hand is the proof."""
        credentials = grpc.ssl_channel_credentials(
            self.ca_root.read_bytes(), private_pem(key), "".join(chain[:-1]).encode()
        )
        return self._create(credentials, (("clusterid", "Kubernetes"),))

    def _create(
        self, credentials: grpc.ChannelCredentials, metadata: tuple[tuple[str, str], ...]
    ) -> tuple[list[str], ec.EllipticCurvePrivateKey]:
        key = ec.generate_private_key(ec.SECP256R1())
        csr = (
            x509.CertificateSigningRequestBuilder()
            .subject_name(x509.Name([]))
            .sign(key, hashes.SHA256())
        )
        request = istio_ca_pb2.IstioCertificateRequest(
            csr=csr.public_bytes(serialization.Encoding.PEM).decode(), validity_duration=3600
        )
        options = (("grpc.ssl_target_name_override", self.ca_name),)
        with grpc.secure_channel(self.ca_address, credentials, options) as channel:
            stub = istio_ca_pb2_grpc.IstioCertificateServiceStub(channel)
            answer = stub.CreateCertificate(request, metadata=metadata, timeout=_CALL_SECONDS)
        return list(answer.cert_chain), key


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the private key as unencrypted PKCS#8 PEM."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def make_ca(organization: str) -> KeyPair:
    """Return a throw-away root CA: the security officer's, offline."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization)])
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return KeyPair(certificate, key)
