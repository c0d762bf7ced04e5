"""`python -m bench.vault_client`: from start to files in place, and the memory when idle.

A real OpenBao over TLS on loopback, the client as a process of its own; medians of several runs,
as one JSON document.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support.hsm_credentials import make_credentials
from tests.support.openbao import OpenBao
from tests.support.vault_client import ClientProcess, memory_folder

RUNS = 9
_IDLE_SECONDS = 2.0
_GIVE_UP_SECONDS = 30.0


def run(folder: Path) -> dict[str, float]:
    """Return the medians; times in milliseconds, memory in MiB."""
    bao = OpenBao(folder / "bao")
    bao.start()
    try:
        settings = _settings(bao, folder)
        runs = [_measure(settings, folder / f"{number}.log") for number in range(RUNS)]
        logins = [_login_ms(bao) for _ in range(RUNS)]
    finally:
        bao.stop()
    return {
        "runs": RUNS,
        "start_to_files_ms": round(statistics.median(start for start, _ in runs), 1),
        "start_to_files_worst_ms": round(max(start for start, _ in runs), 1),
        "idle_rss_mib": round(statistics.median(memory for _, memory in runs), 1),
        "interpreter_alone_ms": round(statistics.median(_interpreter_ms() for _ in range(RUNS)), 1),
        "one_server_call_ms": round(statistics.median(logins), 1),
    }


def _settings(bao: OpenBao, folder: Path) -> dict[str, str]:
    bao.enable_kv("kv", 2)
    bao.put_v2("kv", "hsm", make_credentials())
    bao.allow("hsm", {"kv/data/hsm": "read"})
    bao.write("sys/auth/approle", {"type": "approle"})
    bao.write("auth/approle/role/hsm", {"token_policies": ["hsm"]})
    role_id = bao.read("auth/approle/role/hsm/role-id")["data"]
    secret_id = bao.write("auth/approle/role/hsm/secret-id")["data"]
    if not isinstance(role_id, dict) or not isinstance(secret_id, dict):
        raise TypeError("the AppRole's ids are not where they should be")
    (folder / "role-id").write_text(role_id["role_id"])
    (folder / "secret-id").write_text(secret_id["secret_id"])
    return {
        "VAULT_ADDR": bao.address,
        "VAULT_CACERT": str(bao.ca_file),
        "VAULT_AUTH_METHOD": "approle",
        "VAULT_ROLE_ID_PATH": str(folder / "role-id"),
        "VAULT_SECRET_ID_PATH": str(folder / "secret-id"),
        "VAULT_KV_PATH": "kv/hsm",
    }


def _measure(settings: dict[str, str], log: Path) -> tuple[float, float]:
    """Return the milliseconds from start to files, and the resident MiB when idle."""
    with memory_folder() as output:
        pin = output / "pin"
        started = time.perf_counter()
        with ClientProcess({**settings, "OUTPUT_DIR": str(output)}, log) as client:
            while not pin.exists():
                if time.perf_counter() - started > _GIVE_UP_SECONDS:
                    raise RuntimeError(f"nothing was delivered:\n{client.log}")
                time.sleep(0.001)
            took = (time.perf_counter() - started) * 1e3
            time.sleep(_IDLE_SECONDS)
            status = Path(f"/proc/{client.running.pid}/status").read_text()
            client.terminate()
    resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return took, int(resident.split()[1]) / 1024


def _interpreter_ms() -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", ""], check=True)
    return (time.perf_counter() - started) * 1e3


def _login_ms(bao: OpenBao) -> float:
    started = time.perf_counter()
    bao.read("auth/token/lookup-self")
    return (time.perf_counter() - started) * 1e3


def main() -> None:
    """Print the figures."""
    with tempfile.TemporaryDirectory() as folder:
        sys.stdout.write(json.dumps({"vault_client": run(Path(folder))}, indent=2) + "\n")


if __name__ == "__main__":
    main()
