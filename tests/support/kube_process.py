"""Child processes that never outlive the process that started them."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# PR_SET_PDEATHSIG: the kernel kills the child when its parent goes, however that goes. Set by a
# small program that then becomes the child, since code between fork and exec may deadlock in a
# parent that has threads.
_BECOME = """
import ctypes, os, signal, sys
if ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0) != 0:
    sys.exit("prctl(PR_SET_PDEATHSIG) failed")
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent is gone")
os.execvp(sys.argv[2], sys.argv[2:])
"""

# The kernel's "parent" is the thread that forked: a thread that lives as long as this process.
_spawner = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spawner")


class ChildError(RuntimeError):
    """A child process failed; the message ends with the last lines of its log."""


def dying_with_parent(argv: Sequence[str]) -> list[str]:
    """Return a command line that runs `argv` and is killed when this process ends."""
    return [sys.executable, "-I", "-S", "-c", _BECOME, str(os.getpid()), *argv]


class Child:
    """One program in a process group of its own, logging to one file; it can be started again."""

    def __init__(self, name: str, argv: Sequence[str], log: Path) -> None:
        self.name = name
        self.log = log
        self._argv = tuple(argv)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._process.pid if self._process and self.running else None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Return once the program is forked; its log grows across starts."""
        if self.running:
            raise ChildError(f"{self.name} already runs")
        self._process = _spawner.submit(_fork, self._argv, self.log, _bare_environment()).result()

    def check(self) -> None:
        """Raise ChildError, with the log's tail, when the program is not running."""
        if not self.running:
            status = self._process.returncode if self._process else "never started"
            raise ChildError(f"{self.name} is not running (exit {status})\n{self.log_tail()}")

    def pause(self) -> None:
        """Freeze the program: its connections stay open and are never answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """Return once the program is gone, as in a crash; a frozen or ended one is no error."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def log_tail(self, lines: int = 30) -> str:
        """Return the last lines of the log under a heading, for an error message."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join([f"--- {self.name}: {self.log}", *text.splitlines()[-lines:]])

    def _signal(self, number: signal.Signals) -> None:
        self.check()
        if self._process is not None:
            self._process.send_signal(number)


def _fork(
    argv: Sequence[str], log: Path, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(
            dying_with_parent(argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            process_group=0,
        )


def _bare_environment() -> dict[str, str]:
    """Return PATH alone: no ETCD_ or proxy setting of the caller reaches a child."""
    return {"PATH": os.environ.get("PATH", os.defpath)}
