"""One run of all four programs with canaries for secrets: none is seen where it does not belong."""

import base64
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import grpc
import pytest
from cryptography.hazmat.primitives import serialization

from istio_hsm_proto import kms_istio_v1_pb2 as kms
from tests.integration.hsm_plugin.test_secrecy import traces_of
from tests.integration.istiod_ca_bridge import harness
from tests.integration.istiod_ca_bridge.conftest import token_settings
from tests.integration.vault_client.conftest import Mesh, make_mesh
from tests.support import pki, softhsm
from tests.support import plugin as plugins
from tests.support.openbao import OpenBao
from tests.support.plugin import Plugin
from tests.support.vault_client import ClientProcess, memory_folder

_SECONDS = 30
_MAX_SCANNED = 4 << 20
_LOOKS = 10
_LOOK_SECONDS = 0.03


@dataclass(slots=True)
class Watch:
    """Reads, over and over, what others may read of every process of this host, and keeps it."""

    contents: set[tuple[str, bytes]] = field(default_factory=set)
    _stopped: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _looks: dict[str, int] = field(default_factory=dict)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        assert self._thread is not None
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(_LOOK_SECONDS):
            self.look()

    def look(self) -> None:
        """Look at each process but this one; at each a few times, for it may change by exec."""
        names = {path.name for path in Path("/proc").iterdir()}
        present = {name for name in names if name.isdigit()} - {str(os.getpid())}
        self._looks = {pid: count for pid, count in self._looks.items() if pid in present}
        for pid in present:
            self._looks[pid] = self._looks.get(pid, 0) + 1
            if self._looks[pid] <= _LOOKS:
                with suppress(OSError):  # it ended meanwhile
                    for name in ("cmdline", "environ"):
                        self.contents.add((name, (Path("/proc") / pid / name).read_bytes()))

    def programs(self) -> set[str]:
        """Return the words of all command lines, folders left out."""
        lines = [content for name, content in self.contents.copy() if name == "cmdline"]
        return {Path(word.decode("latin-1")).name for line in lines for word in line.split(b"\0")}


@dataclass(slots=True)
class System:
    """Vault client, plugin and bridge, running, and what is secret in them."""

    folder: Path
    output: Path
    started: float
    bao: OpenBao
    mesh: Mesh
    client: ClientProcess
    plugin: Plugin
    bridge: harness.Bridge
    tokens: harness.TokenIssuer
    root: pki.Issued
    watch: Watch
    secrets: list[bytes] = field(repr=False)
    said: list[str] = field(default_factory=list)
    """What the installer wrote."""

    @property
    def temporary(self) -> Path:
        return self.folder / "tmp"

    def plant(self, *values: bytes) -> None:
        """Add secrets, whole and line by line."""
        for value in values:
            self.secrets += [
                line for line in value.splitlines() if b"-----" not in line and len(line) >= 8
            ]

    def logs(self) -> Mapping[str, bytes]:
        """Return what the programs have said so far."""
        return {
            "plugin": self.plugin.log.read_bytes(),
            "vault client": self.client.log.encode(),
            "bridge": self.bridge.log.encode(),
            "installer": "\n".join(self.said).encode(),
        }

    def installer(self, *arguments: str, code: int = 0) -> None:
        """Run the installer; its words are kept."""
        done = subprocess.run(
            [plugins.program("istio-hsm"), *arguments],
            env={"PATH": os.environ["PATH"], "TMPDIR": str(self.temporary), "HOME": "/nowhere"},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=_SECONDS,
            check=False,
        )
        self.said.append(done.stdout + done.stderr)
        assert done.returncode == code, done.stderr

    def processes(self) -> dict[str, int]:
        """Return the process ids, the plugin's worker among them."""
        children = f"/proc/{self.plugin.pid}/task/{self.plugin.pid}/children"
        (worker,) = Path(children).read_text().split()
        return {
            "plugin": self.plugin.pid,
            "worker": int(worker),
            "vault client": self.client.running.pid,
            "bridge": self.bridge.process.pid,
        }


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("system")
    (folder / "tmp").mkdir()
    with ExitStack() as stack:
        output = stack.enter_context(memory_folder())
        bao = OpenBao(folder / "bao")
        (folder / "bao").mkdir(exist_ok=True)
        bao.start()
        stack.callback(bao.stop)
        mesh = make_mesh(bao, folder, output)
        pin = f"canary-pin-{secrets.token_hex(6)}"
        mesh.values["PIN"] = pin
        mesh.put(mesh.values)
        hsm = softhsm.make_token(folder / "token", pin=pin)
        hsm.pin_file.unlink()
        watch = stack.enter_context(Watch())
        started = time.time()
        socket = folder / "run" / ".sock"
        socket.parent.mkdir()
        common = {"TMPDIR": str(folder / "tmp")}
        client = stack.enter_context(
            mesh.client(LOG_LEVEL="debug", HSM_PLUGIN_SOCKET=str(socket), **common)
        )
        client.wait((output / "pin").exists, "the PIN's file")
        plugin = stack.enter_context(
            plugins.running(
                hsm, socket.parent, environment=common | {"P11_PIN_FILE": str(output / "pin")}
            )
        )
        client.wait_status(state="ready")
        root = harness.strict_root()
        harness.prepare(plugin, root)
        tokens = harness.token_issuer()
        settings = token_settings(folder, tokens) | {"CA_KEY_MODE": "sealed"} | common
        bridge = stack.enter_context(harness.running_bridge(folder, plugin.socket, settings))
        system = System(
            *(folder, output, started, bao, mesh, client, plugin, bridge, tokens, root, watch),
            secrets=[],
        )
        system.plant(pin.encode(), mesh.values["clientkey"].encode())
        system.plant(mesh.jwt_file.read_bytes())
        live(system)
        yield system


def live(system: System) -> None:
    """Do what is done in a mesh's life, some of it wrongly, with each program."""
    ceremony(system)
    sealed = system.bridge.secret("istio-ca-encrypted-key")
    with system.plugin.keys() as keys:
        skey = keys.LoadSKey(
            kms.LoadSKeyRequest(
                kek_kid=sealed["kek-id"],
                encrypted_dek_blob=sealed["encrypted-dek"],
                encrypted_skey_blob=sealed["encrypted-skey"],
            )
        )
    system.plant(skey.plaintext_skey)
    right, foreign = system.tokens.token(), harness.token_issuer().token()
    system.plant(right.encode(), foreign.encode())
    workload = harness.create_certificate(system.bridge, token=right)
    harness.create_certificate(system.bridge, client=workload)
    for token, csr in ((foreign, None), (right, skey.plaintext_skey.decode())):
        with pytest.raises(grpc.RpcError) as caught:
            harness.create_certificate(system.bridge, token=token, csr=csr)
        system.said.append(str(caught.value.details()))
    # A set that cannot be published, and a Vault that answers no more.
    bad = dict(system.mesh.values) | {"clientkey": f"canary-{secrets.token_hex(20)}"}
    system.plant(bad["clientkey"].encode())
    system.mesh.put(bad)
    system.client.wait_status(cause="invalid")


def ceremony(system: System) -> None:
    """Sign the CA's CSR with the installer, by a root key under a passphrase."""
    folder, bridge = system.folder, system.bridge
    bridge.await_log(harness.WAIT_LINE)
    passphrase = f"canary-passphrase-{secrets.token_hex(8)}".encode()
    operator = f"canary-operator-{secrets.token_hex(8)}".encode()
    root_key = system.root.key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(passphrase),
    )
    system.plant(passphrase, operator, root_key)
    secret = bridge.secret("istio-ca-cert-csr")
    encrypted = {name: base64.b64encode(value).decode() for name, value in secret.items()}
    for name, content in {
        "encrypted.json": json.dumps(encrypted).encode(),
        "root.pem": system.root.pem,
        "secret-root.key": root_key,
        "secret-passphrase": passphrase + b"\n",
        "secret-wrong": b"canary-wrong-passphrase\n",
        "secret-operator": operator + b"\n",
    }.items():
        (folder / name).write_bytes(content)
    system.installer(
        *("ceremony", "decrypt", f"{folder}/encrypted.json", "--out", f"{folder}/csr.pem"),
        *("--socket", str(system.plugin.socket)),
        *("--plugin-command", plugins.program("hsm-plugin")),
    )
    sign = (
        *("ceremony", "sign", f"{folder}/csr.pem", "--root-cert", f"{folder}/root.pem"),
        *("--root-key", f"{folder}/secret-root.key", "--chain", f"{folder}/chain.pem"),
    )
    system.installer(*sign, "--passphrase-file", f"{folder}/secret-wrong", code=1)
    system.installer(*sign, "--passphrase-file", f"{folder}/secret-passphrase")
    system.installer(
        *("ceremony", "submit", f"{folder}/chain.pem", "--csr", f"{folder}/csr.pem"),
        *("--store-dir", str(bridge.secrets)),
    )
    # A token in the place of a PEM, and of the configuration.
    for arguments in (
        ("ceremony", "show", f"{folder}/secret-operator"),
        ("plan", "-f", f"{folder}/secret-root.key"),
    ):
        system.installer(*arguments, code=1)
    bridge.await_serving()


def seen_in(content: bytes, system: System) -> list[str]:
    """Return which canaries are in the content, cut so that this tells none."""
    return [
        f"{secret[:9].decode(errors='replace')}…"
        for secret in system.secrets
        if any(trace in content for trace in traces_of(secret))
    ]


def test_no_canary_is_in_any_log_or_answer(system: System) -> None:
    logs = system.logs()
    assert all(len(log) > 100 for log in logs.values())
    assert {name: found for name, log in logs.items() if (found := seen_in(log, system))} == {}
    assert [name for name, log in logs.items() if b"Traceback" in log] == []


def test_no_canary_is_in_arguments_or_environment_of_any_process(system: System) -> None:
    system.watch.look()
    programs = {"hsm-plugin", "vault_client", "istiod-ca-bridge", "istio-hsm"}
    assert programs | {"vault_client.control_call"} <= system.watch.programs()
    for name, content in system.watch.contents.copy():
        assert seen_in(content, system) == [], name


def test_no_canary_is_in_a_file_that_is_not_its_own(system: System) -> None:
    leaks = {
        str(path): found
        for path in written_files(system)
        if (found := seen_in(path.read_bytes(), system))
    }
    assert leaks == {}
    assert list(system.temporary.iterdir()) == []


def written_files(system: System) -> Iterator[Path]:
    """Yield each file of this run, and those of others that appeared meanwhile in shared places."""
    own = (system.folder / "token", system.folder / "bao", system.mesh.jwt_file)
    for path in system.folder.rglob("*"):
        is_source = path.name.startswith("secret-") or any(path.is_relative_to(it) for it in own)
        if path.is_file() and not is_source:
            yield path
    for place in (Path("/tmp"), Path("/dev/shm"), Path("/var/tmp"), Path.cwd()):  # noqa: S108 - looked at
        for path in place.iterdir():
            if is_new_file(path, system.started):
                yield path


def is_new_file(path: Path, since: float) -> bool:
    try:
        facts = path.lstat()
        return path.is_file() and facts.st_mtime >= since and facts.st_size < _MAX_SCANNED
    except OSError:  # another's, gone meanwhile
        return False


def test_the_canaries_are_found_where_they_do_lie(system: System) -> None:
    assert seen_in((system.output / "pin").read_bytes(), system)
    assert seen_in((system.folder / "secret-root.key").read_bytes(), system)
    shown = "canary-shown-on-purpose"
    with subprocess.Popen(
        ["sh", "-c", "read _", shown], env={"SHOWN": shown}, stdin=subprocess.PIPE
    ) as process:
        with Watch() as watch:
            time.sleep(_LOOKS * _LOOK_SECONDS)
        process.kill()
    kinds = {name for name, content in watch.contents if shown.encode() in content}
    assert kinds == {"cmdline", "environ"}


def test_no_program_may_dump_its_memory(system: System) -> None:
    for name, pid in system.processes().items():
        limits = (Path("/proc") / str(pid) / "limits").read_text().splitlines()
        (core,) = [line for line in limits if line.startswith("Max core file size")]
        assert core.split()[4:6] == ["0", "0"], name


def test_a_crash_tells_no_canary_and_dumps_no_core(system: System) -> None:
    """The last of this module: it ends the programs."""
    before = {name: len(log) for name, log in system.logs().items()}
    processes = {
        "vault client": system.client.running,
        "bridge": system.bridge.process,
        "plugin": system.plugin.process,
    }
    for process in processes.values():
        process.send_signal(signal.SIGABRT)
    for name, process in processes.items():
        assert process.wait(_SECONDS) == -signal.SIGABRT, name
    for name, log in system.logs().items():
        assert seen_in(log[before[name] :], system) == []
    cores = [path for path in Path.cwd().iterdir() if path.name.startswith("core")]
    assert [path for path in cores if is_new_file(path, system.started)] == []
    assert not list(system.temporary.glob("core*"))


_SHOWN = "print(resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(3))"
"""3 is PR_GET_DUMPABLE (prctl(2))."""


@pytest.mark.parametrize(
    ("program", "shown"),
    [
        ("from hsm_plugin import core_dumps; core_dumps.forbid()", "(0, 0) 0"),
        (
            "from istio_hsm_installer import __main__ as m; m.run = lambda _: 0; start(m)",
            "(0, 0) 0",
        ),
        ("pass", " 1"),
    ],
    ids=["hsm-plugin", "istio-hsm", "neither"],
)
def test_memory_is_closed_before_a_secret_comes_in(program: str, shown: str) -> None:
    start = "\ndef start(m):\n  try: m.main()\n  except SystemExit: pass\n"
    code = f"import ctypes, resource{start}{program}\n{_SHOWN}"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=_SECONDS
    )
    assert done.stdout.strip().endswith(shown)
