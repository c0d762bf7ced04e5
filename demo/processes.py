"""The demo's child processes: started from lists, ended by pid, never left behind."""

import contextlib
import ctypes
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

_PR_SET_PDEATHSIG = 1
_STOP_SECONDS = 10.0


class DemoError(Exception):
    """A step did not come to its end."""


class Processes:
    """A context manager: what it started ends with it, the last one first."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: list[tuple[str, subprocess.Popen[bytes]]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for _name, process in reversed(self._running):
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start a server whose output goes to `<name>.log`."""
        with self.log(name).open("wb") as output:
            process = subprocess.Popen(
                command,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - no thread has been started yet
            )
        self._running.append((name, process))

    def log(self, name: str) -> Path:
        """Return the path of a server's log."""
        return self._folder / f"{name}.log"

    def wait_for(self, what: str, ready: Callable[[], bool], *, seconds: float = 30) -> None:
        """Return when `ready` is true; DemoError when a server ended or the time is over."""
        end = time.monotonic() + seconds
        while not ready():
            for name, process in self._running:
                if process.poll() is not None:
                    raise DemoError(f"{name} ended with {process.returncode}\n{self._tail(name)}")
            if time.monotonic() > end:
                logs = "\n".join(self._tail(name) for name, _ in self._running)
                raise DemoError(f"after {seconds:.0f} s still waiting for {what}\n{logs}")
            time.sleep(0.05)

    def wait_for_log(self, name: str, text: str) -> None:
        """Return when the server's log holds the text."""
        self.wait_for(f'"{text}" in {name}\'s log', lambda: text in self.log(name).read_text())

    def _tail(self, name: str) -> str:
        lines = self.log(name).read_text(errors="replace").splitlines()[-12:]
        return "\n".join(f"  {name}: {line}" for line in lines)


def run(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """Return a command's standard output; DemoError with its words when it fails."""
    result = subprocess.run(
        command, env=dict(environment), capture_output=True, text=True, check=False, timeout=60
    )
    if result.returncode != 0:
        words = (result.stderr or result.stdout).strip()
        raise DemoError(f"`{' '.join(command)}` failed with {result.returncode}\n{words}")
    return result.stdout.strip()


def _die_with_parent() -> None:
    """Have the kernel end this child when the demo dies without a word (prctl(2))."""
    with contextlib.suppress(OSError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
