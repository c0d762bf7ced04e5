"""The worker processes of a bridge, found as the kernel tells of them."""

import os
import signal
import time
from pathlib import Path

from tests.integration.istiod_ca_bridge import harness

_PROC = Path("/proc")


def workers_of(bridge: harness.Bridge) -> dict[int, int]:
    """Return the process id of each worker, by its number."""
    parent = _PROC / str(bridge.process.pid)
    children = " ".join(it.read_text() for it in parent.glob("task/*/children")).split()
    found = {}
    for child in map(int, children):
        words = command_of(child)
        if "worker" in words:
            found[int(words[words.index("worker") + 1])] = child
    return found


def command_of(pid: int) -> list[str]:
    """Return a process's arguments."""
    return (_PROC / str(pid) / "cmdline").read_text().split("\0")


def is_alive(pid: int) -> bool:
    """Tell whether a process runs: it is there, and is no corpse."""
    try:
        return "\nState:\tZ" not in (_PROC / str(pid) / "status").read_text()
    except FileNotFoundError:
        return False


def kill(bridge: harness.Bridge, number: int) -> int:
    """SIGKILL a worker and return what its process id was."""
    pid = workers_of(bridge)[number]
    os.kill(pid, signal.SIGKILL)
    return pid


def await_workers(bridge: harness.Bridge, count: int, seconds: float = 30.0) -> None:
    """Return once so many serve, as the bridge itself says last."""
    end = time.monotonic() + seconds
    while not _last_told(bridge).endswith(f"serving={count} of={count}"):
        if bridge.process.poll() is not None or time.monotonic() > end:
            raise harness.BridgeError(f"no {count} workers that serve\n{bridge.log}")
        time.sleep(0.02)


def _last_told(bridge: harness.Bridge) -> str:
    told = [line for line in bridge.log.splitlines() if " workers.serving " in line]
    return told[-1] if told else ""
