"""A real bridge process beside a real plugin, and a client that behaves as Istio's agent does."""

import base64
import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health_pb2, health_pb2_grpc

from istio_hsm_proto import istio_ca_pb2 as ca
from istio_hsm_proto import kms_istio_v1_pb2 as kms
from istio_hsm_proto.istio_ca_pb2_grpc import IstioCertificateServiceStub
from tests.support import pki
from tests.support.kube_process import dying_with_parent
from tests.support.plugin import Plugin, program
from tests.support.ports import free_port

KEK_ID = "test-kek"
ISSUER = "https://kubernetes.default.svc.cluster.local"
TRUST_DOMAIN = "cluster.local"
CALLER = "spiffe://cluster.local/ns/shop/sa/cart"
WAIT_LINE = "Wait until the CA certificate secret istio-system.istio-ca-cert can be loaded..."

_SECONDS = 30.0
_POLL = 0.02
_OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))


class BridgeError(RuntimeError):
    """The bridge did not do what was awaited; the message ends with its log."""


@dataclass(slots=True)
class Bridge:
    """A running bridge on a directory store."""

    folder: Path
    process: subprocess.Popen[bytes] = field(repr=False)
    environment: Mapping[str, str] = field(repr=False)

    @property
    def log(self) -> str:
        return (self.folder / "bridge.log").read_text(errors="replace")

    @property
    def secrets(self) -> Path:
        return self.folder / "secrets"

    @property
    def root_file(self) -> Path:
        return self.folder / "root.pem"

    @property
    def address(self) -> str:
        return self.environment["CA_LISTEN"]

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Return once the condition holds; BridgeError when the process ends or time is up."""
        end = time.monotonic() + _SECONDS
        while not condition():
            if self.process.poll() is not None:
                raise BridgeError(f"exit {self.process.returncode} before {what}\n{self.log}")
            if time.monotonic() >= end:
                raise BridgeError(f"no {what} within {_SECONDS} s\n{self.log}")
            time.sleep(_POLL)

    def await_log(self, text: str, count: int = 1) -> None:
        self.wait_until(lambda: self.log.count(text) >= count, f"{count} times {text!r}")

    def await_serving(self) -> None:
        self.wait_until(lambda: self.health() == health_pb2.HealthCheckResponse.SERVING, "SERVING")

    def health(self) -> int | None:
        """Return what the health listener says; None while nothing answers."""
        try:
            with grpc.insecure_channel(self.environment["HEALTH_LISTEN"], _OPTIONS) as channel:
                # Any: the stub package leaves the methods out.
                stub: Any = health_pb2_grpc.HealthStub(channel)
                reply: health_pb2.HealthCheckResponse = stub.Check(
                    health_pb2.HealthCheckRequest(), timeout=2
                )
                return reply.status
        except grpc.RpcError:
            return None

    def await_exit(self) -> int:
        try:
            return self.process.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            raise BridgeError(f"still running\n{self.log}") from None

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.await_exit()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def secret(self, name: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.secrets / name).iterdir()}

    def offer(self, chain: bytes) -> None:
        """Put a chain where an operator puts it, whole."""
        folder = self.secrets / "istio-ca-cert"
        folder.mkdir(mode=0o700, exist_ok=True)
        new = self.folder / "new-chain.pem"
        new.write_bytes(chain)
        new.replace(folder / "cert-chain.pem")


def start_bridge(
    folder: Path, plugin_socket: Path, environment: Mapping[str, str] | None = None
) -> Bridge:
    """Return a bridge that was just started; the caller ends it. Starts share one log."""
    (folder / "secrets").mkdir(mode=0o700, exist_ok=True)
    settings = {
        "BRIDGE_STORE": "directory",
        "BRIDGE_STORE_DIR": str(folder / "secrets"),
        "KEY_MANAGEMENT_ENDPOINT": str(plugin_socket),
        "KEY_MANAGEMENT_KEY_ID": KEK_ID,
        "CA_LISTEN": f"127.0.0.1:{free_port()}",
        "HEALTH_LISTEN": f"127.0.0.1:{free_port()}",
        "METRICS_LISTEN": f"127.0.0.1:{free_port()}",
        "ROOT_CERT_FILE": str(folder / "root.pem"),
        "DRAIN_DELAY": "0s",
        "DRAIN_DURATION": "3s",
    } | dict(environment or {})
    with (folder / "bridge.log").open("ab") as output:
        process = subprocess.Popen(
            dying_with_parent([program("istiod-ca-bridge"), "serve"]),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=settings,
        )
    return Bridge(folder, process, settings)


@contextmanager
def running_bridge(
    folder: Path, plugin_socket: Path, environment: Mapping[str, str] | None = None
) -> Iterator[Bridge]:
    """A bridge; stopped, and killed when need be, at the end."""
    bridge = start_bridge(folder, plugin_socket, environment)
    try:
        yield bridge
    finally:
        if bridge.process.poll() is None:
            bridge.process.terminate()
            try:
                bridge.process.wait(_SECONDS)
            except subprocess.TimeoutExpired:
                bridge.kill()


# The operator's part


def strict_root(lifetime: timedelta = timedelta(days=1)) -> pki.Issued:
    """Return a root with all that `openssl verify -x509_strict` wants."""
    key = ec.generate_private_key(ec.SECP256R1())
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return pki.issue(
        "Mesh Root",
        is_ca=True,
        usage=pki.CA_USAGE,
        valid_until=pki.MOMENT + lifetime,
        key=key,
        extensions=((identifier, False),),
    )


def prepare(plugin: Plugin, root: pki.Issued) -> None:
    """Make the KEK and import the root, as the guide does before istiod starts."""
    with plugin.keys() as keys:
        keys.GenerateKEK(kms.GenerateKEKRequest(kek_kid=KEK_ID.encode()), timeout=10)
        keys.ImportCACert(kms.ImportCACertRequest(ca_cert_blob=root.pem), timeout=10)


def decrypted_csr(plugin: Plugin, bridge: Bridge) -> x509.CertificateSigningRequest:
    """Return the CSR in the bridge's Secret."""
    secret = bridge.secret("istio-ca-cert-csr")
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


def signed_ca(
    csr: x509.CertificateSigningRequest,
    root: pki.Issued,
    *,
    lifetime: timedelta = timedelta(days=30),
    is_ca: bool = True,
) -> bytes:
    """Return cert-chain.pem: the CA certificate of the CSR, then the root."""
    now = datetime.now(UTC).replace(microsecond=0)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(csr.subject)
        .issuer_name(root.certificate.subject)
        .public_key(csr.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + lifetime)
        .add_extension(
            x509.BasicConstraints(ca=is_ca, path_length=0 if is_ca else None), critical=True
        )
        .add_extension(pki.CA_USAGE.extension(), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(csr.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(root.key.public_key()),
            critical=False,
        )
        .sign(root.key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM) + root.pem


def bring_to_serving(bridge: Bridge, plugin: Plugin, root: pki.Issued) -> None:
    """Do the signing ceremony and wait."""
    bridge.await_log(WAIT_LINE)
    bridge.offer(signed_ca(decrypted_csr(plugin, bridge), root))
    bridge.await_serving()


# The token issuer's part


@dataclass(frozen=True, slots=True)
class TokenIssuer:
    """Signs projected ServiceAccount tokens as a Kubernetes API server does."""

    key: rsa.RSAPrivateKey = field(repr=False)
    key_id: str = "k1"

    def jwks(self) -> str:
        numbers = self.key.public_key().public_numbers()
        entry = {
            "kty": "RSA",
            "use": "sig",
            "alg": "RS256",
            "kid": self.key_id,
            "n": _base64url(numbers.n),
            "e": _base64url(numbers.e),
        }
        return json.dumps({"keys": [entry]})

    def token(self, namespace: str = "shop", account: str = "cart", **changes: Any) -> str:
        now = int(time.time())
        claims: dict[str, Any] = {
            "iss": ISSUER,
            "aud": ["istio-ca"],
            "sub": f"system:serviceaccount:{namespace}:{account}",
            "iat": now,
            "nbf": now,
            "exp": now + 3600,
            "kubernetes.io": {
                "namespace": namespace,
                "serviceaccount": {"name": account, "uid": "u1"},
                "pod": {"name": f"{account}-0", "uid": "u2"},
            },
        } | changes
        return jwt.encode(claims, self.key, algorithm="RS256", headers={"kid": self.key_id})


def token_issuer() -> TokenIssuer:
    return TokenIssuer(rsa.generate_private_key(65537, 2048))


def _base64url(number: int) -> str:
    octets = number.to_bytes((number.bit_length() + 7) // 8, "big")
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


# The agent's part


@dataclass(frozen=True, slots=True)
class Workload:
    """A sidecar's key, and what it got for it."""

    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey = field(repr=False)
    chain: tuple[str, ...] = ()

    @property
    def leaf(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.chain[0].encode())

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )


def csr_of(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey,
    *extensions: x509.ExtensionType,
    uri: str = "spiffe://cluster.local/ns/ignored/sa/ignored",
) -> str:
    """Return a CSR as an agent makes it, with a SAN that the CA must ignore."""
    builder = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "")]))
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=True
        )
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


@contextmanager
def ca_channel(bridge: Bridge, client: Workload | None = None) -> Iterator[grpc.Channel]:
    """A TLS channel to the CA, trusting the root it published; perhaps with a certificate."""
    credentials = grpc.ssl_channel_credentials(
        bridge.root_file.read_bytes(),
        client.key_pem if client else None,
        "".join(client.chain[:-1]).encode() if client else None,
    )
    options = (("grpc.ssl_target_name_override", "istiod.istio-system.svc"), *_OPTIONS)
    with grpc.secure_channel(bridge.address, credentials, options) as channel:
        yield channel


def create_certificate(
    bridge: Bridge,
    *,
    token: str | None = None,
    client: Workload | None = None,
    csr: str | None = None,
    seconds: int = 0,
    cluster: str = "Kubernetes",
) -> Workload:
    """Return what the CA answers to a fresh P-256 key; grpc.RpcError when it refuses."""
    key = ec.generate_private_key(ec.SECP256R1())
    metadata: tuple[tuple[str, str | bytes], ...] = (("clusterid", cluster),)
    if token is not None:
        metadata += (("authorization", f"Bearer {token}"),)
    with ca_channel(bridge, client) as channel:
        reply = IstioCertificateServiceStub(channel).CreateCertificate(
            ca.IstioCertificateRequest(csr=csr or csr_of(key), validity_duration=seconds),
            metadata=metadata,
            timeout=10,
        )
    return Workload(key, tuple(reply.cert_chain))
