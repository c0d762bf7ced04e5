"""`make demo`: from nothing to a workload certificate signed in an HSM, and where the key is.

Everything is throw-away: a SoftHSM2 token stands in for the HSM, OpenBao for Vault, a key in a
file for the offline root. The four processes are the real ones, each with the environment that
its container has. Exit code 0 when `openssl verify` accepts the certificate.
"""

import base64
import json
import os
import shutil
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import grpc
from cryptography import x509
from pkcs11 import Attribute, ObjectClass
from pkcs11.exceptions import AttributeSensitive

from demo import vault_server
from demo.mesh import ISSUER, ISTIO_AUDIENCE, KeyPair, Sidecar, TokenIssuer, make_ca
from demo.processes import DemoError, Processes, run
from demo.screen import Screen
from tests.support.ports import free_port
from tests.support.softhsm import SoftHsm, make_token
from tests.support.token_view import viewed

KEK_ID = "7651a4ea-eeb7-4c1f-927b-8c871c2127aa"
TRUST_DOMAIN = "cluster.local"
CA_NAME = "istiod.istio-system.svc"
CALLER = f"spiffe://{TRUST_DOMAIN}/ns/bookinfo/sa/details"
WAITING = "Wait until the CA certificate secret istio-system.istio-ca-cert can be loaded..."


@dataclass(frozen=True, slots=True)
class Stage:
    """What all acts of the demo share."""

    folder: Path
    processes: Processes
    screen: Screen
    hsm: SoftHsm
    root: KeyPair
    issuer: TokenIssuer
    ca_address: str

    @property
    def credentials(self) -> Path:
        """The memory volume `hsm-credential`."""
        return self.folder / "hsm-credential"

    @property
    def plugin_environment(self) -> dict[str, str]:
        """The environment of the container hsm-plugin, on SoftHSM2."""
        return {
            **self.hsm.environment(),
            "P11_PIN_FILE": str(self.credentials / "pin"),
            "SOCKET": str(self.folder / "s.sock"),
        }

    @property
    def store(self) -> Path:
        """The directory that stands in for the Secrets of istio-system."""
        return self.folder / "secrets"

    @property
    def root_file(self) -> Path:
        """The root certificate, PEM."""
        return self.folder / "root.pem"


def main() -> int:
    """Return the exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    screen = Screen()
    memory = Path("/dev/shm")  # noqa: S108 - memory-backed, and mkdtemp makes mode 0700
    folder = Path(tempfile.mkdtemp(prefix="istio-hsm-", dir=memory if memory.is_dir() else None))
    try:
        with Processes(folder) as processes:
            _play(folder, processes, screen)
    except KeyboardInterrupt:
        screen.error("interrupted; all processes were ended and all files removed")
        return 130
    except (DemoError, grpc.RpcError, RuntimeError) as error:
        screen.error(str(error))
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def _play(folder: Path, processes: Processes, screen: Screen) -> None:
    screen.title(
        "istio-hsm",
        "An Istio mesh whose CA key never leaves an HSM, from nothing to a certificate.\n"
        "SoftHSM2 stands in for the HSM, OpenBao for Vault. Nothing stays behind.",
    )
    screen.chapter("An HSM, an offline root, a Vault")
    with screen.step("Initialise a throw-away token") as notes:
        hsm = make_token(folder / "hsm", pin=str(int.from_bytes(os.urandom(4))).zfill(10))
        hsm.pin_file.unlink()  # the Vault client will bring it
        notes.append(f'token "{hsm.label}" in SoftHSM2')
    with screen.step("Make a root CA, the security officer's, offline") as notes:
        root = make_ca("Example Root CA")
        stage = Stage(
            folder=folder,
            processes=processes,
            screen=screen,
            hsm=hsm,
            root=root,
            issuer=TokenIssuer(),
            ca_address=f"127.0.0.1:{free_port()}",
        )
        stage.root_file.write_bytes(root.certificate_pem())
        notes.append(root.certificate.subject.rfc4514_string())
    _deliver_credentials(stage)
    _start_plugin(stage)
    _hold_ceremony(stage)
    _issue(stage)
    _show_key(stage)


def _deliver_credentials(stage: Stage) -> None:
    with stage.screen.step("Start OpenBao and store the HSM's client files and PIN") as notes:
        ca = make_ca("Vault CA")
        server = vault_server.start(stage.processes, stage.folder, ca)
        client = make_ca("HSM client")
        secret = {
            "clientcert": client.certificate_pem().decode(),
            "clientkey": client.key_pem().decode(),
            "servercert": make_ca("HSM server").certificate_pem().decode(),
            "PIN": stage.hsm.pin,
        }
        vault_server.configure(server, secret, stage.issuer.public_pem())
        notes.append(f"{vault_server.SECRET_PATH}: {', '.join(secret)}")
    with stage.screen.step("vault-client logs in and delivers them into memory") as notes:
        token_file = stage.folder / "istiod-token"
        token_file.touch(0o600)
        token_file.write_text(stage.issuer.token("istio-system", "istiod", vault_server.AUDIENCE))
        stage.credentials.mkdir(mode=0o700)
        stage.processes.start(
            "vault-client",
            [_script("vault-client")],
            {
                "VAULT_ADDR": server.address,
                "VAULT_CACERT": str(server.ca_file),
                "VAULT_AUTH_PATH": f"auth/{vault_server.SECRET_PATH}/login",
                "VAULT_ROLE": vault_server.ROLE,
                "VAULT_AUTH_JWT_PATH": str(token_file),
                "VAULT_KV_PATH": vault_server.SECRET_PATH,
                "OUTPUT_DIR": str(stage.credentials),
                "HEALTH_ADDR": "off",
            },
        )
        names = ("clientcert.pem", "clientkey.pem", "servercert.pem", "pin")
        stage.processes.wait_for(
            "the files", lambda: all((stage.credentials / name).exists() for name in names)
        )
        modes = {f"{(stage.credentials / name).stat().st_mode & 0o777:04o}" for name in names}
        notes.append(f"{', '.join(names)}: mode {', '.join(sorted(modes))}, swapped in as one set")


def _start_plugin(stage: Stage) -> None:
    environment = stage.plugin_environment
    plugin = _script("hsm-plugin")
    stage.screen.chapter("The plugin and its keys")
    with stage.screen.step("hsm-plugin logs in to the token") as notes:
        stage.processes.start("hsm-plugin", [plugin, "serve"], environment)
        stage.processes.wait_for_log("hsm-plugin", "Connected to token")
        notes.append(f"gRPC on {Path(environment['SOCKET']).name}, mode 0660")
    with stage.screen.step("hsm-plugin generate-kek") as notes:
        notes.append(run([plugin, "generate-kek", "--kek-id", KEK_ID], environment))
    with stage.screen.step("hsm-plugin import-ca") as notes:
        notes.append(run([plugin, "import-ca", "-f", str(stage.root_file)], environment))


def _hold_ceremony(stage: Stage) -> None:
    stage.screen.chapter("The ceremony")
    with stage.screen.step("istiod-ca-bridge has the CA key made in the HSM and asks") as notes:
        stage.store.mkdir(mode=0o700)
        jwks = stage.folder / "jwks.json"
        jwks.write_text(stage.issuer.jwks())
        stage.processes.start(
            "istiod-ca-bridge",
            [_script("istiod-ca-bridge"), "serve"],
            {
                "KEY_MANAGEMENT_ENDPOINT": stage.plugin_environment["SOCKET"],
                "KEY_MANAGEMENT_KEY_ID": KEK_ID,
                "BRIDGE_STORE": "directory",
                "BRIDGE_STORE_DIR": str(stage.store),
                "CA_LISTEN": stage.ca_address,
                "TRUST_DOMAIN": TRUST_DOMAIN,
                "JWKS_FILE": str(jwks),
                "TOKEN_ISSUER": ISSUER,
                "TOKEN_AUDIENCES": ISTIO_AUDIENCE,
            },
        )
        stage.processes.wait_for_log("istiod-ca-bridge", WAITING)
        notes.append(f"its log: {WAITING}")
    csr, chain = stage.folder / "csr.pem", stage.folder / "cert-chain.pem"
    with stage.screen.step("hsm-plugin decrypt-csr") as notes:
        sealed = stage.folder / "encrypted_csr.json"
        sealed.write_text(_secret_as_json(stage.store / "istio-ca-cert-csr"))
        notes.append(
            run(
                [_script("hsm-plugin"), "decrypt-csr", "-f", str(sealed), "-o", str(csr)],
                stage.plugin_environment,
            )
        )
    installer, quiet = _script("istio-hsm"), {"NO_COLOR": "1", "PATH": os.environ["PATH"]}
    with stage.screen.step("istio-hsm ceremony sign, by the offline root") as notes:
        key_file = stage.folder / "root.key"
        key_file.touch(0o600)
        key_file.write_bytes(stage.root.key_pem())
        signed = run(
            [
                *(installer, "ceremony", "sign", str(csr), "--root-cert", str(stage.root_file)),
                *("--root-key", str(key_file), "--chain", str(chain), "-o", "json"),
            ],
            quiet,
        )
        key_file.unlink()
        notes.append("{issuer} signed {subject}, until {not_after}".format(**json.loads(signed)))
    with stage.screen.step("istio-hsm ceremony submit, and the HSM's root verifies it"):
        run(
            [
                *(installer, "ceremony", "submit", str(chain), "--csr", str(csr)),
                *("--store-dir", str(stage.store)),
            ],
            quiet,
        )
        stage.processes.wait_for_log("istiod-ca-bridge", "ca_server.listening")


def _issue(stage: Stage) -> None:
    stage.screen.chapter("A sidecar")
    sidecar = Sidecar(stage.ca_address, stage.root_file, CA_NAME)
    with stage.screen.step("CreateCertificate by a ServiceAccount's token") as notes:
        token = stage.issuer.token("bookinfo", "details", ISTIO_AUDIENCE)
        chain, key = sidecar.by_token(token)
        notes.append(_identity(chain[0]))
    with stage.screen.step("Renewed by its certificate, without a token") as notes:
        chain, key = sidecar.by_certificate(chain, key)
        leaf = x509.load_pem_x509_certificate(chain[0].encode())
        if leaf.public_key() != key.public_key():
            raise DemoError("the certificate is for another key than the sidecar's")
        if _identity(chain[0]) != CALLER:
            raise DemoError(f"the certificate names {_identity(chain[0])} instead of {CALLER}")
        notes.append(f"{_identity(chain[0])}, until {leaf.not_valid_after_utc:%FT%TZ}")
    with stage.screen.step("openssl verify") as notes:
        leaf_file, between = stage.folder / "leaf.pem", stage.folder / "intermediates.pem"
        leaf_file.write_text(chain[0])
        between.write_text("".join(chain[1:-1]))
        told = run(
            [
                *("openssl", "verify", "-x509_strict", "-purpose", "sslserver"),
                *("-CAfile", str(stage.root_file), "-untrusted", str(between), str(leaf_file)),
            ],
            {"PATH": os.environ["PATH"]},
        )
        notes.append(told.replace(str(stage.folder), ""))


def _show_key(stage: Stage) -> None:
    with (
        stage.screen.step("Ask the token itself for the CA key") as notes,
        viewed(stage.hsm) as hsm,
    ):
        [key] = hsm.objects(ObjectClass.PRIVATE_KEY)
        told = {
            name: key[getattr(Attribute, name)]
            for name in ("SENSITIVE", "ALWAYS_SENSITIVE", "EXTRACTABLE", "NEVER_EXTRACTABLE")
        }
        notes.append(", ".join(f"CKA_{name}={value}" for name, value in told.items()))
        try:
            _ = key[Attribute.PRIVATE_EXPONENT]
        except AttributeSensitive:
            notes.append("reading its private exponent: CKR_ATTRIBUTE_SENSITIVE")
        else:
            raise DemoError("the token gave the private key away")
    stage.screen.summary(
        f"[bold green]{CALLER}[/bold green] has a certificate whose chain verifies.\n"
        "The CA key was made in the HSM and signed there; the root never left its officer;\n"
        "istiod, Vault and the disk never saw either."
    )


def _identity(pem: str) -> str:
    certificate = x509.load_pem_x509_certificate(pem.encode())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return ", ".join(names.get_values_for_type(x509.UniformResourceIdentifier))


def _secret_as_json(folder: Path) -> str:
    """Return what `kubectl get secret -o jsonpath={.data}` prints for such a Secret."""
    return json.dumps(
        {
            path.name: base64.b64encode(path.read_bytes()).decode()
            for path in folder.iterdir()
            if not path.name.startswith(".")
        }
    )


def _script(name: str) -> str:
    return str(Path(sys.executable).parent / name)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
