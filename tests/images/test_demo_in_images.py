"""The demo's scenario, played by the images: their root file systems, shared volumes, uid 1337."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509

from demo import vault_server
from demo.mesh import ISSUER, ISTIO_AUDIENCE, Sidecar, TokenIssuer, make_ca
from demo.processes import DemoError, Processes, run
from tests.images import cell
from tests.images.builder import PREFIX, TAG, Images, plugin_with_softhsm
from tests.images.cell import MESH_ID, Volume
from tests.support.ports import free_port
from tests.support.softhsm import make_token

pytestmark = pytest.mark.timeout(900)

KEK_ID = "7651a4ea-eeb7-4c1f-927b-8c871c2127aa"
CALLER = "spiffe://cluster.local/ns/bookinfo/sa/details"
WAITING = "Wait until the CA certificate secret istio-system.istio-ca-cert can be loaded..."

CREDENTIALS, SOCKET, TOKEN = "/var/run/hsm-credential", "/var/run/hsm-socket", "/var/lib/token"
STORE, MESH, LOGIN, VAULT_CA = "/var/lib/store", "/etc/mesh", "/var/run/login", "/etc/vault-ca"


@dataclass(frozen=True, slots=True)
class Pod:
    """The root file systems, and the volumes that the containers share."""

    folder: Path
    processes: Processes
    roots: Mapping[str, Path]

    def volume(self, target: str, *, read_only: bool = False) -> Volume:
        """Return the volume of the container's path, made when first asked for."""
        source = self.folder / "volumes" / target.rpartition("/")[2]
        if not source.exists():
            source.mkdir(parents=True, mode=0o700)
            os.chown(source, MESH_ID, MESH_ID)
        return Volume(source, target, read_only)

    def write(self, target: str, name: str, text: str) -> None:
        path = self.volume(target).source / name
        path.write_text(text)
        os.chown(path, MESH_ID, MESH_ID)

    def read(self, target: str, name: str) -> str:
        return (self.volume(target).source / name).read_text()

    def command(self, image: str, volumes: list[Volume], *arguments: str) -> list[str]:
        return cell.command(self.roots[image], volumes, (f"/opt/istio-hsm/bin/{image}", *arguments))


@pytest.fixture
def pod(images: Images) -> Iterator[Pod]:
    roots = {
        "hsm-plugin": images.root(plugin_with_softhsm(images)),
        "vault-client": images.root(f"{PREFIX}/vault-client:{TAG}"),
        "istiod-ca-bridge": images.root(f"{PREFIX}/istiod-ca-bridge:{TAG}"),
        "istio-hsm": images.root(f"{PREFIX}/istio-hsm:{TAG}"),
    }
    memory = Path("/dev/shm")  # noqa: S108 - memory-backed, and mkdtemp makes mode 0700
    folder = Path(tempfile.mkdtemp(prefix="istio-hsm-pod-", dir=memory))
    folder.chmod(0o711)
    try:
        with Processes(folder) as processes:
            yield Pod(folder, processes, roots)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def play(pod: Pod) -> tuple[list[str], str]:
    """Play from an empty token to a certificate; return the chain and where the root is."""
    issuer = TokenIssuer()
    root = make_ca("Example Root CA")
    root_file = pod.folder / "root.pem"
    root_file.write_bytes(root.certificate_pem())
    pod.write(MESH, "root.pem", root.certificate_pem().decode())
    pod.write(MESH, "jwks.json", issuer.jwks())
    pin = start_vault_client(pod, issuer)
    plugin = start_plugin(pod, pin)
    for arguments in (
        ("generate-kek", "--kek-id", KEK_ID),
        ("import-ca", "-f", f"{MESH}/root.pem"),
    ):
        run(pod.command("hsm-plugin", [*plugin_volumes(pod), pod.volume(MESH)], *arguments), plugin)
    address = start_bridge(pod)
    hold_ceremony(pod, plugin, root.key_pem().decode())
    sidecar = Sidecar(address, root_file, "istiod.istio-system.svc")
    chain, _ = sidecar.by_token(issuer.token("bookinfo", "details", ISTIO_AUDIENCE))
    return chain, str(root_file)


def start_vault_client(pod: Pod, issuer: TokenIssuer) -> str:
    """Deliver the HSM's files into the memory volume; return the PIN."""
    pin = str(int.from_bytes(os.urandom(4))).zfill(10)
    ca = make_ca("Vault CA")
    server = vault_server.start(pod.processes, pod.folder, ca)
    client = make_ca("HSM client")
    secret = {
        "clientcert": client.certificate_pem().decode(),
        "clientkey": client.key_pem().decode(),
        "servercert": make_ca("HSM server").certificate_pem().decode(),
        "PIN": pin,
    }
    vault_server.configure(server, secret, issuer.public_pem())
    pod.write(VAULT_CA, "cert", ca.certificate_pem().decode())
    pod.write(LOGIN, "token", issuer.token("istio-system", "istiod", vault_server.AUDIENCE))
    environment = {
        "VAULT_ADDR": server.address,
        "VAULT_CACERT": f"{VAULT_CA}/cert",
        "VAULT_AUTH_PATH": f"auth/{vault_server.SECRET_PATH}/login",
        "VAULT_ROLE": vault_server.ROLE,
        "VAULT_AUTH_JWT_PATH": f"{LOGIN}/token",
        "VAULT_KV_PATH": vault_server.SECRET_PATH,
        "OUTPUT_DIR": CREDENTIALS,
        "HEALTH_ADDR": f"127.0.0.1:{free_port()}",
    }
    volumes = [
        pod.volume(CREDENTIALS),
        pod.volume(LOGIN, read_only=True),
        pod.volume(VAULT_CA, read_only=True),
    ]
    pod.processes.start("vault-client", pod.command("vault-client", volumes), environment)
    delivered = pod.volume(CREDENTIALS).source / "pin"
    pod.processes.wait_for("the PIN", delivered.exists)
    told = run(pod.command("vault-client", volumes, "healthcheck"), environment)
    assert told == "ready"
    return pin


def plugin_volumes(pod: Pod) -> list[Volume]:
    return [pod.volume(CREDENTIALS, read_only=True), pod.volume(SOCKET), pod.volume(TOKEN)]


def start_plugin(pod: Pod, pin: str) -> dict[str, str]:
    """Serve a new token; return the container's environment."""
    token = make_token(pod.folder / "hsm", pin=pin)
    home = pod.volume(TOKEN).source
    shutil.copytree(token.folder / "tokens", home / "tokens")
    pod.write(TOKEN, "softhsm2.conf", f"directories.tokendir = {TOKEN}/tokens\n")
    for path in (home / "tokens", *(home / "tokens").rglob("*")):
        os.chown(path, MESH_ID, MESH_ID)
    environment = {
        "SOFTHSM2_CONF": f"{TOKEN}/softhsm2.conf",
        "P11_LIB": "/usr/lib/softhsm/libsofthsm2.so",
        "P11_TOKEN": token.label,
        "P11_PIN_FILE": f"{CREDENTIALS}/pin",
        "SOCKET": f"{SOCKET}/.sock",
    }
    command = pod.command("hsm-plugin", plugin_volumes(pod), "serve")
    pod.processes.start("hsm-plugin", command, environment)
    pod.processes.wait_for_log("hsm-plugin", "Connected to token")
    return environment


def start_bridge(pod: Pod) -> str:
    """Start the CA; return its address once it waits for the ceremony."""
    address = f"127.0.0.1:{free_port()}"
    environment = {
        "KEY_MANAGEMENT_ENDPOINT": f"{SOCKET}/.sock",
        "KEY_MANAGEMENT_KEY_ID": KEK_ID,
        "BRIDGE_STORE": "directory",
        "BRIDGE_STORE_DIR": STORE,
        "CA_LISTEN": address,
        "JWKS_FILE": f"{MESH}/jwks.json",
        "TOKEN_ISSUER": ISSUER,
    }
    volumes = [
        pod.volume(SOCKET, read_only=True),
        pod.volume(STORE),
        pod.volume(MESH, read_only=True),
    ]
    command = pod.command("istiod-ca-bridge", volumes, "serve")
    pod.processes.start("istiod-ca-bridge", command, environment)
    pod.processes.wait_for_log("istiod-ca-bridge", WAITING)
    return address


def hold_ceremony(pod: Pod, plugin: Mapping[str, str], root_key: str) -> None:
    secret = pod.volume(STORE).source / "istio-ca-cert-csr"
    values = {
        path.name: base64.b64encode(path.read_bytes()).decode()
        for path in secret.iterdir()
        if not path.name.startswith(".")
    }
    pod.write(MESH, "encrypted_csr.json", json.dumps(values))
    csr, chain = f"{MESH}/csr.pem", f"{MESH}/cert-chain.pem"
    mesh = pod.volume(MESH)
    decrypt = ("decrypt-csr", "-f", f"{MESH}/encrypted_csr.json", "-o", csr)
    run(pod.command("hsm-plugin", [*plugin_volumes(pod), mesh], *decrypt), plugin)
    pod.write(MESH, "root.key", root_key)
    (mesh.source / "root.key").chmod(0o600)
    root = ("--root-cert", f"{MESH}/root.pem", "--root-key", f"{MESH}/root.key")
    for volumes, arguments in (
        ([mesh], ("sign", csr, *root, "--chain", chain)),
        ([mesh, pod.volume(STORE)], ("submit", chain, "--csr", csr, "--store-dir", STORE)),
    ):
        run(pod.command("istio-hsm", volumes, "ceremony", *arguments), {"NO_COLOR": "1"})
    pod.processes.wait_for_log("istiod-ca-bridge", "root cert:")


def test_the_images_play_the_demo_from_an_empty_token_to_a_certificate(pod: Pod) -> None:
    chain, root_file = play(pod)

    leaf, between = pod.folder / "leaf.pem", pod.folder / "between.pem"
    leaf.write_text(chain[0])
    between.write_text("".join(chain[1:-1]))
    verify = ("openssl", "verify", "-x509_strict", "-CAfile", root_file)
    told = run([*verify, "-untrusted", str(between), str(leaf)], {"PATH": os.environ["PATH"]})
    names = (
        x509.load_pem_x509_certificate(chain[0].encode())
        .extensions.get_extension_for_class(x509.SubjectAlternativeName)
        .value.get_values_for_type(x509.UniformResourceIdentifier)
    )
    assert told.endswith("OK")
    assert names == [CALLER]


def test_a_program_that_is_process_one_ends_in_order_when_told_to(pod: Pod) -> None:
    pod.write(CREDENTIALS, "pin", "2718281828")
    plugin = start_plugin(pod, "2718281828")

    pod.processes.__exit__()

    assert plugin["SOCKET"] == f"{SOCKET}/.sock"
    assert "Stopped" in pod.processes.log("hsm-plugin").read_text()
    assert not (pod.volume(SOCKET).source / ".sock").exists()


def test_the_plugin_without_a_library_says_what_to_layer(images: Images, pod: Pod) -> None:
    bare = images.root(f"{PREFIX}/hsm-plugin:{TAG}")
    environment = {
        "P11_LIB": "/onprem/lib/libCryptoki2.so",
        "P11_TOKEN": "mesh",
        "P11_PIN_FILE": f"{CREDENTIALS}/pin",
        "SOCKET": f"{SOCKET}/.sock",
    }
    command = cell.command(bare, plugin_volumes(pod), ["/opt/istio-hsm/bin/hsm-plugin", "serve"])

    with pytest.raises(DemoError, match=r"/onprem/lib/libCryptoki2\.so .* does not exist"):
        run(command, environment)


@pytest.mark.parametrize(
    ("image", "command"), [("hsm-plugin", "health"), ("istiod-ca-bridge", "health")]
)
def test_a_health_command_says_no_while_nothing_serves(pod: Pod, image: str, command: str) -> None:
    result = subprocess.run(
        pod.command(image, [pod.volume(SOCKET)], command),
        env={"SOCKET": f"{SOCKET}/.sock", "KEY_MANAGEMENT_KEY_ID": KEK_ID},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert result.returncode == 1
    assert "hint: " in result.stderr
