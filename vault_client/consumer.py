"""The plugin that the set is for, told of each new one over its socket.

The call is a process of its own (vault_client.reload_call), which is gone a moment later: gRPC
would stay in this process's memory for one call in weeks.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

_START_SECONDS = 10.0
_MAX_REASON_LENGTH = 500
_SILENT = frozenset({"DEADLINE_EXCEEDED", "UNAVAILABLE"})


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


class PluginConsumer:
    """An hsm-plugin, asked by ReloadCredentials (proto/istio_hsm_proto/control_v1.proto)."""

    def __init__(self, socket: Path, *, timeout_seconds: float) -> None:
        self._socket = socket
        self._timeout_seconds = timeout_seconds

    def reload(self, generation: str) -> Answer:
        """Return the plugin's answer; one that is not given when nothing answers in time."""
        try:
            done = subprocess.run(
                [
                    *(sys.executable, "-m", "vault_client.reload_call"),
                    *(str(self._socket), generation, str(self._timeout_seconds)),
                ],
                env={},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=self._timeout_seconds + _START_SECONDS,
                check=True,
            )
            content = json.loads(done.stdout)
            status, details = str(content["status"]), str(content["details"])
        except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError) as error:
            return Answer(given=False, accepted=False, reason=type(error).__name__)
        if status == "OK":
            return Answer(given=True, accepted=True)
        reason = f"{status}: {details[:_MAX_REASON_LENGTH]}"
        return Answer(given=status not in _SILENT, accepted=False, reason=reason)
