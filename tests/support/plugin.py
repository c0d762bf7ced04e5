"""A real `hsm-plugin serve` process on a socket, its log at hand."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from istio_hsm_proto import kms_istio_v1_pb2_grpc, signing_v1_pb2_grpc
from tests.support.kube_process import dying_with_parent
from tests.support.softhsm import SoftHsm

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

_START_SECONDS = 30.0
_STOP_SECONDS = 30.0
_POLL_SECONDS = 0.02
_CALL_SECONDS = 5.0
# A pool of its own: else a new channel inherits the backoff of one that met no socket.
_OPTIONS = (("grpc.use_local_subchannel_pool", 1),)


class PluginError(RuntimeError):
    """The plugin did not do what was awaited; the message ends with its log."""


@dataclass(slots=True)
class Plugin:
    """A running plugin."""

    socket: Path
    log: Path
    process: subprocess.Popen[bytes] = field(repr=False)

    @property
    def pid(self) -> int:
        return self.process.pid

    @contextmanager
    def channel(self) -> Iterator[grpc.Channel]:
        """A channel of its own to the socket."""
        with grpc.insecure_channel(f"unix:{self.socket}", options=_OPTIONS) as channel:
            yield channel

    @contextmanager
    def keys(self) -> Iterator[kms_istio_v1_pb2_grpc.KeyManagementServiceStub]:
        """The reference API on a channel of its own."""
        with self.channel() as channel:
            yield kms_istio_v1_pb2_grpc.KeyManagementServiceStub(channel)

    @contextmanager
    def signing(self) -> Iterator[signing_v1_pb2_grpc.SigningServiceStub]:
        """The signing API on a channel of its own."""
        with self.channel() as channel:
            yield signing_v1_pb2_grpc.SigningServiceStub(channel)

    def health(self, service: str = "") -> int | None:
        """Return the health status; None while nothing answers."""
        if not self.socket.exists():
            return None
        try:
            with self.channel() as channel:
                return check_health(channel, service)
        except grpc.RpcError:
            return None

    def await_health(self, wanted: int) -> None:
        """Return once the health status is the wanted one."""
        self.wait_until(lambda: self.health() == wanted, f"health {wanted}")

    def await_event(self, name: str, count: int = 1) -> None:
        """Return once the log holds `count` events of this name."""
        self.wait_until(lambda: len(self.events(name)) >= count, f"{count} {name} in the log")

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Return once the condition holds; PluginError when the process ends or time is up."""
        end = time.monotonic() + _START_SECONDS
        while not condition():
            if self.process.poll() is not None:
                raise PluginError(f"exit {self.process.returncode} before {what}\n{self.text()}")
            if time.monotonic() >= end:
                raise PluginError(f"no {what} within {_START_SECONDS} s\n{self.text()}")
            time.sleep(_POLL_SECONDS)

    def text(self) -> str:
        """Return what the process wrote to stdout and stderr."""
        return self.log.read_text(errors="replace")

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the events of this name in the JSON log."""
        lines = [json.loads(line) for line in self.text().splitlines() if line.startswith("{")]
        return [line for line in lines if line.get("event") == name]

    def terminate(self) -> None:
        """Send SIGTERM and do not wait."""
        self.process.send_signal(signal.SIGTERM)

    def stop(self) -> int:
        """Return the exit code after a SIGTERM."""
        self.terminate()
        return self.wait()

    def wait(self) -> int:
        """Return the exit code once the process has ended."""
        try:
            return self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise PluginError(f"still running after {_STOP_SECONDS} s\n{self.text()}") from None

    def kill(self) -> None:
        """Return once the process is gone, as after a crash."""
        self.process.kill()
        self.process.wait()


def check_health(channel: grpc.Channel, service: str = "") -> int:
    """Return the health status; grpc.RpcError when nothing answers."""
    stub: Any = health_pb2_grpc.HealthStub(channel)  # its methods are missing in the stubs' types
    response: health_pb2.HealthCheckResponse = stub.Check(
        health_pb2.HealthCheckRequest(service=service), timeout=_CALL_SECONDS
    )
    return response.status


def program(name: str = "hsm-plugin") -> str:
    """Return the path of an installed console script."""
    return str(Path(sys.executable).parent / name)


@contextmanager
def running(
    hsm: SoftHsm,
    folder: Path,
    *,
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    wanted: int | None = SERVING,
    name: str = "hsm-plugin",
) -> Iterator[Plugin]:
    """A plugin on `folder`/.sock; stopped, and killed when need be, at the end.

    `wanted`: the health to wait for, None to return once the process is started.
    """
    plugin = start(hsm, folder, arguments=arguments, environment=environment, name=name)
    try:
        if wanted is not None:
            plugin.await_health(wanted)
        yield plugin
    finally:
        if plugin.process.poll() is None:
            plugin.terminate()
            try:
                plugin.process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                plugin.kill()


def start(
    hsm: SoftHsm,
    folder: Path,
    *,
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    name: str = "hsm-plugin",
) -> Plugin:
    """Return a plugin that was just started; the caller ends it. Starts share one log."""
    folder.mkdir(parents=True, exist_ok=True)
    socket, log = folder / ".sock", folder / "plugin.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            dying_with_parent([program(name), "serve", *arguments]),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=hsm.environment()
            | {"SOCKET": str(socket), "LOG_FORMAT": "json"}
            | dict(environment or {}),
        )
    return Plugin(socket=socket, log=log, process=process)


def command(
    arguments: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    name: str = "hsm-plugin",
) -> subprocess.CompletedProcess[str]:
    """Return a command that ended, its output captured."""
    return subprocess.run(
        [program(name), *arguments],
        env={"PATH": os.environ.get("PATH", os.defpath)} | dict(environment or {}),
        capture_output=True,
        text=True,
        errors="backslashreplace",
        timeout=_STOP_SECONDS,
        check=False,
    )
