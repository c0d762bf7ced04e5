"""A real OpenBao, and for each test a mesh of its own in it: KV mounts, a role, a policy."""

import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from tests.support.hsm_credentials import make_credentials
from tests.support.openbao import OpenBao
from tests.support.vault_client import ClientProcess, memory_folder

_KEY = ec.generate_private_key(ec.SECP256R1())
AUDIENCE = "vault"


@dataclass(frozen=True, slots=True)
class Mesh:
    """One mesh's corner of the server, and a client's environment for it."""

    bao: OpenBao
    name: str
    folder: Path
    output: Path
    values: dict[str, str] = field(repr=False)

    @property
    def jwt_file(self) -> Path:
        return self.folder / "jwt"

    @property
    def role(self) -> str:
        return f"auth/{self.name}/hsm/role/istiod"

    def environment(self, **more: str) -> dict[str, str]:
        """Return the settings of a client that works, with some replaced; empty ones are unset."""
        settings = {
            "VAULT_ADDR": self.bao.address,
            "VAULT_CACERT": str(self.bao.ca_file),
            "VAULT_AUTH_PATH": f"auth/{self.name}/hsm/login",
            "VAULT_ROLE": "istiod",
            "VAULT_AUTH_JWT_PATH": str(self.jwt_file),
            "VAULT_KV_PATH": f"{self.name}/istiod",
            "OUTPUT_DIR": str(self.output),
            "POLL_INTERVAL": "200ms",
            "ONCE_TIMEOUT": "100ms",
            "RETRY_MAX_INTERVAL": "500ms",
            **more,
        }
        return {name: value for name, value in settings.items() if value}

    def client(self, **more: str) -> ClientProcess:
        log = self.folder / f"client-{secrets.token_hex(4)}.log"
        return ClientProcess(self.environment(**more), log)

    def put(self, values: dict[str, str]) -> int:
        """Write a new version and return its number."""
        return self.bao.put_v2(self.name, "istiod", values)

    def write_jwt(self, *, audience: str = AUDIENCE, starts: int = -60, ends: int = 600) -> str:
        """Write the token to log in with and return it; times are seconds from now."""
        token = make_jwt(audience=audience, starts=starts, ends=ends)
        self.jwt_file.write_text(token)
        return token


def make_jwt(*, audience: str = AUDIENCE, starts: int = -60, ends: int = 600) -> str:
    """Return a service account's token, signed by the key that the mounts know."""
    now = int(time.time())
    claims = {
        "iss": "https://kubernetes.default.svc",
        "aud": [audience],
        "sub": "system:serviceaccount:istio-system:istiod",
        "nbf": now + starts,
        "exp": now + ends,
    }
    pem = _KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return jwt.encode(claims, pem, algorithm="ES256")


def make_mesh(bao: OpenBao, folder: Path, output: Path) -> Mesh:
    """Return a new mesh whose client can do its work."""
    name = f"mesh-{secrets.token_hex(4)}"
    mesh = Mesh(bao, name, folder, output, make_credentials())
    set_up(mesh)
    mesh.write_jwt()
    return mesh


def set_up(mesh: Mesh, namespace: str = "") -> None:
    """Mount, write and grant what the mesh's client needs, in a namespace (`<name>/`) if given."""
    bao, name = mesh.bao, mesh.name
    public = _KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    config = {"jwt_validation_pubkeys": [public.decode()]}
    bao.write(f"{namespace}sys/auth/{name}/hsm", {"type": "jwt"})
    bao.write(f"{namespace}auth/{name}/hsm/config", config)
    set_role(mesh, namespace=namespace)
    bao.write(f"{namespace}sys/mounts/{name}", {"type": "kv", "options": {"version": "2"}})
    policy = f'path "{name}/data/istiod" {{ capabilities = ["read"] }}'
    bao.write(f"{namespace}sys/policies/acl/{name}", {"policy": policy})
    bao.write(f"{namespace}{name}/data/istiod", {"data": mesh.values})


def set_role(mesh: Mesh, *, ttl: str = "1h", max_ttl: str = "24h", namespace: str = "") -> None:
    """Write the role anew with these lives."""
    settings = {
        "role_type": "jwt",
        "bound_audiences": [AUDIENCE],
        "user_claim": "sub",
        "token_policies": [mesh.name],
        "token_ttl": ttl,
        "token_max_ttl": max_ttl,
    }
    mesh.bao.write(f"{namespace}{mesh.role}", settings)


@pytest.fixture(scope="session")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    """A server that every test may share and none may disturb."""
    yield from _server(tmp_path_factory.mktemp("bao"))


@pytest.fixture(scope="session")
def breakable_bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    """A server to stop, seal and re-key; whoever does leaves it as found."""
    yield from _server(tmp_path_factory.mktemp("breakable"))


@pytest.fixture
def output() -> Iterator[Path]:
    with memory_folder() as folder:
        yield folder


@pytest.fixture
def mesh(bao: OpenBao, tmp_path: Path, output: Path) -> Mesh:
    return make_mesh(bao, tmp_path, output)


@pytest.fixture
def fragile_mesh(breakable_bao: OpenBao, tmp_path: Path, output: Path) -> Mesh:
    return make_mesh(breakable_bao, tmp_path, output)


def _server(folder: Path) -> Iterator[OpenBao]:
    server = OpenBao(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()
