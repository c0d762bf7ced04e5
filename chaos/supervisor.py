"""Processes that are started again when they end, as a kubelet does, with a small backoff."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.support.kube_process import dying_with_parent

_FIRST_BACKOFF = 0.3
_LONGEST_BACKOFF = 5.0
_SOUND_SECONDS = 10.0
"""A process that ran so long starts without backoff."""
_STOP_SECONDS = 30.0

# The kernel's "parent" is the thread that forked: one that lives as long as this process.
_spawner = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spawner")


@dataclass(frozen=True, slots=True)
class Exit:
    """A process that ended while it should have run."""

    name: str
    code: int
    """Negative: the signal."""
    was_sent: bool
    """Whether chaos sent that signal."""


class Supervised:
    """One program; whatever it prints goes to one log over all its starts."""

    def __init__(
        self, name: str, argv: Sequence[str], environment: Mapping[str, str], log: Path
    ) -> None:
        self.name = name
        self.log = log
        self._argv = dying_with_parent(argv)
        self._environment = dict(environment)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._sent: set[int] = set()
        self._watcher = threading.Thread(target=self._watch, name=f"watch-{name}", daemon=True)
        self.exits: list[Exit] = []

    def start(self) -> None:
        """Start it, now and after each end."""
        self._launch()
        self._watcher.start()

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        with self._lock:
            process = self._process
        return process.pid if process and process.poll() is None else None

    def send(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens when it does not run."""
        with self._lock:
            process = self._process
            if process is not None and process.poll() is None:
                self._sent.add(process.pid)
                process.send_signal(number)

    def worker_pids(self) -> list[int]:
        """Return the process ids of its children."""
        pid = self.pid
        try:
            return [int(it) for it in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        except OSError:
            return []

    def stop(self) -> int:
        """Return its exit code after a SIGTERM, -9 when it had to be killed; it stays ended."""
        self._stopping.set()
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM)
        process = self._process
        if process is None:
            return 0
        try:
            code = process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        self._watcher.join()
        return code

    def _launch(self) -> None:
        with self._lock:
            self._process = _spawner.submit(_fork, self._argv, self._environment, self.log).result()

    def _watch(self) -> None:
        backoff = 0.0
        while True:
            process, began = self._process, time.monotonic()
            if process is None:
                return
            code = process.wait()
            if self._stopping.is_set():
                return
            self.exits.append(Exit(self.name, code, process.pid in self._sent))
            is_sound = time.monotonic() - began > _SOUND_SECONDS
            backoff = (
                _FIRST_BACKOFF if is_sound else min(2 * backoff or _FIRST_BACKOFF, _LONGEST_BACKOFF)
            )
            if self._stopping.wait(backoff):
                return
            self._launch()


def _fork(
    argv: Sequence[str], environment: Mapping[str, str], log: Path
) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={"PATH": os.environ.get("PATH", os.defpath), **environment},
            process_group=0,
        )
