"""The vault-client as a process of its own, with its log, its endpoints and its files."""

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Self

from tests.support.kube_process import dying_with_parent
from vault_client.delivery import Published, SecretSet
from vault_client.files import Publisher

DEADLINE_S = 30.0
Event = Mapping[str, object]


@contextmanager
def memory_folder() -> Iterator[Path]:
    """A new directory in memory, gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="vault-client-", dir="/dev/shm"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(publisher: Publisher, delivered: SecretSet, now: datetime) -> Published:
    """Put the set in place as the agent does, without a trial, and return it."""
    staged = publisher.stage(delivered, now)
    publisher.put_in_place(staged)
    return staged


def run_client(environment: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the client to its end and return what it said."""
    return subprocess.run(
        dying_with_parent([sys.executable, "-m", "vault_client", *arguments]),
        env=_with_path(environment),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


class ClientProcess:
    """One daemon; used in a with statement, stopped at its end."""

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        self.output = Path(environment["OUTPUT_DIR"])
        self._environment = {"HEALTH_ADDR": "127.0.0.1:0", "LOG_FORMAT": "json", **environment}
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                dying_with_parent([sys.executable, "-m", "vault_client"]),
                env=_with_path(self._environment),
                stdout=log,
                stderr=log,
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self.running.poll() is None:
            self.running.kill()
            self.running.wait()

    @property
    def running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def events(self) -> list[Event]:
        lines = self.log.splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def count(self, event: str) -> int:
        return sum(found["event"] == event for found in self.events)

    def terminate(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.running.send_signal(signal.SIGTERM)
        return self.running.wait(DEADLINE_S)

    def wait_event(self, event: str, **fields: object) -> Event:
        """Return the first event of this name with these fields."""
        found: list[Event] = []

        def seen() -> bool:
            found[:] = [
                e
                for e in self.events
                if e["event"] == event and all(e.get(k) == v for k, v in fields.items())
            ]
            return bool(found)

        self.wait(seen, f"event {event} {fields}")
        return found[0]

    def wait_status(self, **fields: object) -> Event:
        """Return the status once it has these fields."""
        found: list[Event] = []

        def seen() -> bool:
            found[:] = [self.status()]
            return all(found[0].get(name) == value for name, value in fields.items())

        self.wait(seen, f"status {fields}")
        return found[0]

    def wait(self, true: Callable[[], bool], what: str) -> None:
        ends = time.monotonic() + DEADLINE_S
        while not true():
            if time.monotonic() > ends or self.running.poll() is not None:
                raise AssertionError(f"in vain waited for {what}; the log:\n{self.log}")
            time.sleep(0.02)

    def status(self) -> Event:
        """Return what /readyz says."""
        content: Event = json.loads(self.get("/readyz")[1])
        return content

    def metrics(self) -> dict[str, float]:
        """Return the samples by name and labels."""
        lines = self.get("/metrics")[1].decode().splitlines()
        samples = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    def get(self, path: str) -> tuple[int, bytes]:
        """Return the status and body of one of the client's pages."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    @property
    def port(self) -> int:
        return int(str(self.wait_event("http.listening")["port"]))

    def file(self, name: str) -> str:
        return (self.output / name).read_text()


def _with_path(environment: Mapping[str, str]) -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", os.defpath), **environment}
