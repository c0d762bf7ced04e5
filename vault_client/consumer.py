"""The plugin that the set is for: asked before each new one is published, and told after.

Each call is a process of its own (vault_client.control_call), which is gone a moment later: gRPC
would stay in this process's memory for two calls in weeks.
"""

import json
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from vault_client.errors import DeadlineError

_START_SECONDS = 10.0
_MAX_REASON_LENGTH = 500
_SILENT = frozenset({"DEADLINE_EXCEEDED", "UNAVAILABLE"})
_TAKEN = frozenset({"ACCEPTED", "IN_USE"})


@dataclass(frozen=True, slots=True)
class Answer:
    """The consumer's word on one generation."""

    given: bool
    accepted: bool
    reason: str | None = None


class CredentialConsumer(Protocol):
    """The process that the set is for."""

    def reload(self, generation: str) -> Answer:
        """Return its answer on this generation, or one that was not given in time."""

    def try_out(self, generation: str, *, patient: bool) -> Answer:
        """Return what the HSM says of a generation that is not in place yet.

        Impatient, it does not wait for a consumer that is not there. DeadlineError when abandoned.
        """

    def abandon(self) -> None:
        """End the call under way, if any, and every later one; for the way out, from any thread."""


class PluginConsumer:
    """An hsm-plugin, asked by its ControlService (proto/istio_hsm_proto/control_v1.proto)."""

    def __init__(self, socket: Path, *, timeout_seconds: float, patient: bool = True) -> None:
        """`patient`: wait for a plugin that is not there yet."""
        self._socket = socket
        self._timeout_seconds = timeout_seconds
        self._patient = patient
        self._lock = threading.Lock()
        self._running: subprocess.Popen[bytes] | None = None
        self._abandoned = False

    def reload(self, generation: str) -> Answer:
        """Return the plugin's answer; one that is not given when nothing answers in time."""
        said = self._call("reload", generation, patient=self._patient)
        if said.status == "OK":
            return Answer(given=True, accepted=True)
        return Answer(given=said.status not in _SILENT, accepted=False, reason=said.reason)

    def try_out(self, generation: str, *, patient: bool) -> Answer:
        """Return the token's word on the PIN; one that is not given when the plugin has none."""
        said = self._call("trial", generation, patient=patient and self._patient)
        if self._abandoned:
            raise DeadlineError("told to stop before the plugin had tried the set", hint="start it")
        if said.status == "OK" and said.verdict in _TAKEN:
            return Answer(given=True, accepted=True)
        refused = said.status == "OK" and said.verdict == "REFUSED"
        return Answer(given=refused, accepted=False, reason=said.reason)

    def abandon(self) -> None:
        """End the call under way, and every later one."""
        with self._lock:
            self._abandoned = True
            if self._running is not None:
                self._running.kill()

    def _call(self, call: Literal["reload", "trial"], generation: str, *, patient: bool) -> "_Said":
        if not patient and not self._socket.exists():
            return _Said("UNAVAILABLE", "UNAVAILABLE: there is no socket yet")
        try:
            answer = self._output(
                [
                    *(sys.executable, "-m", "vault_client.control_call", call),
                    *(str(self._socket), generation, str(self._timeout_seconds)),
                    "patient" if patient else "impatient",
                ]
            )
            content = json.loads(answer)
            status, verdict = str(content["status"]), str(content["verdict"])
            details = str(content["details"])[:_MAX_REASON_LENGTH]
        except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError) as error:
            return _Said("UNAVAILABLE", type(error).__name__)
        return _Said(status, details if status == "OK" else f"{status}: {details}", verdict)

    def _output(self, command: list[str]) -> bytes:
        """Return what the command wrote; SubprocessError when it does not end well, or in time."""
        with self._lock:
            if self._abandoned:
                raise subprocess.SubprocessError
            process = subprocess.Popen(
                command,
                env={},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            self._running = process
        with process:
            try:
                written, _ = process.communicate(timeout=self._timeout_seconds + _START_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
            finally:
                with self._lock:
                    self._running = None
        if process.returncode != 0:
            raise subprocess.CalledProcessError(process.returncode, "control_call")
        return written


@dataclass(frozen=True, slots=True)
class _Said:
    """What one call was answered."""

    status: str
    reason: str
    verdict: str = ""
