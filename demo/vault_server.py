"""A throw-away OpenBao that holds the HSM's client files and PIN, as the guide lays them out."""

import ipaddress
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import hvac
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from demo.mesh import ISSUER, KeyPair, private_pem
from demo.processes import Processes
from tests.support.ports import free_port

MOUNT = "asm-c1"
SECRET_PATH = f"{MOUNT}/hsm"
ROLE = "istiod"
AUDIENCE = "vault"


@dataclass(frozen=True, slots=True)
class VaultServer:
    """Where it answers, and the CA that its certificate is from."""

    address: str
    ca_file: Path


def start(processes: Processes, folder: Path, ca: KeyPair) -> VaultServer:
    """Start the server with TLS; it is sealed and empty."""
    port = free_port()
    certificate, key = folder / "vault.pem", folder / "vault.key"
    certificate.write_bytes(_server_certificate(ca, key))
    ca_file = folder / "vault-ca.pem"
    ca_file.write_bytes(ca.certificate_pem())
    config = folder / "vault.hcl"
    config.write_text(
        f'storage "inmem" {{}}\n'
        f'listener "tcp" {{\n'
        f'  address = "127.0.0.1:{port}"\n'
        f'  tls_cert_file = "{certificate}"\n'
        f'  tls_key_file = "{key}"\n'
        f"}}\n"
        f'api_addr = "https://127.0.0.1:{port}"\n'
    )
    bao = Path(sys.executable).parent / "bao"
    processes.start("bao", [str(bao), "server", f"-config={config}"], {"HOME": str(folder)})
    server = VaultServer(f"https://127.0.0.1:{port}", ca_file)
    processes.wait_for("OpenBao", lambda: _answers(server))
    return server


def configure(server: VaultServer, secret: Mapping[str, str], token_key_pem: str) -> None:
    """Unseal it, store the four values, and let istiod's account read them and nothing else.

    The guide's `kubernetes` method asks an API server about each token; here there is none, so
    the `jwt` method verifies the same token by its issuer's key. The login call is the same.
    """
    client = _client(server)
    made = client.sys.initialize(secret_shares=1, secret_threshold=1)
    client.sys.submit_unseal_keys(made["keys"])
    client.token = made["root_token"]
    client.sys.enable_secrets_engine("kv", path=MOUNT, options={"version": "2"})
    client.secrets.kv.v2.create_or_update_secret("hsm", dict(secret), mount_point=MOUNT)
    client.sys.create_or_update_policy(
        "asm-c1-hsm-policy", f'path "{MOUNT}/data/hsm" {{ capabilities = ["read"] }}'
    )
    client.sys.enable_auth_method("jwt", path=SECRET_PATH)
    client.write_data(
        f"auth/{SECRET_PATH}/config",
        data={"jwt_validation_pubkeys": [token_key_pem], "bound_issuer": ISSUER},
    )
    client.write_data(
        f"auth/{SECRET_PATH}/role/{ROLE}",
        data={
            "role_type": "jwt",
            "user_claim": "sub",
            "bound_audiences": [AUDIENCE],
            "bound_subject": "system:serviceaccount:istio-system:istiod",
            "token_policies": ["asm-c1-hsm-policy"],
            "token_ttl": "1h",
        },
    )


def _client(server: VaultServer) -> hvac.Client:
    session = requests.Session()
    session.trust_env = False
    session.verify = str(server.ca_file)
    return hvac.Client(  # type: ignore[no-untyped-call] # hvac has no types
        url=server.address, session=session, timeout=10
    )


def _answers(server: VaultServer) -> bool:
    try:
        _client(server).sys.is_initialized()
    except requests.RequestException:
        return False
    return True


def _server_certificate(ca: KeyPair, key_file: Path) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    key_file.touch(0o600)
    key_file.write_bytes(private_pem(key))
    now = datetime.now(UTC)
    names = x509.SubjectAlternativeName(
        [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(ca.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(names, critical=True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.key.public_key()), critical=False
        )
        .add_extension(
            x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
        )
        .sign(ca.key, hashes.SHA256())
    )
    return KeyPair(certificate, key).certificate_pem()
