"""The audit log of a serving plugin, from its start to its signed end."""

import asyncio
import contextlib
import json
import os
import socket
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from hsm_plugin import whole_file
from hsm_plugin.audit_chain import Fields, Head, Kind
from hsm_plugin.audit_checkpoints import Checkpoints
from hsm_plugin.audit_log import AuditLog, AuditSettings
from hsm_plugin.errors import AuditFailedError
from hsm_plugin.token_client import TokenClient

_REMEMBER_SECONDS = 5.0
_LAST_SIGNATURE_SECONDS = 3.0


@dataclass(slots=True)
class Auditing:
    """The log, its checkpoints, and a memory of the log's head that lies elsewhere."""

    log: AuditLog
    checkpoints: Checkpoints
    _memory: Path
    _tasks: list[asyncio.Task[None]]

    def why_keys_rest(self) -> str:
        """Return why no key is used now; empty when keys are used."""
        try:
            self.log.check()
        except AuditFailedError as error:
            return str(error)
        return ""

    async def close(self) -> None:
        """Return when the log's end is written, and signed if the token answers."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            await self.log.record(Kind.STOP, {})
            async with asyncio.timeout(_LAST_SIGNATURE_SECONDS):
                if not self.checkpoints.token.breaker.is_open:
                    await self.checkpoints.sign()
        except (AuditFailedError, TimeoutError):
            pass  # told of already; the log ends without its end
        await self.log.close()
        _remember(self._memory, self.log)

    async def _keep_in_mind(self) -> None:
        while True:
            await asyncio.sleep(_REMEMBER_SECONDS)
            await asyncio.to_thread(_remember, self._memory, self.log)


def begin(settings: AuditSettings, state_dir: Path, token: TokenClient) -> Auditing:
    """Return the open log, its loops running; ConfigError when it cannot be written."""
    memory = state_dir / "audit-head.json"
    start: Fields = {
        "version": version("istio-hsm"),
        "pid": os.getpid(),
        "host": socket.gethostname(),
    }
    log = AuditLog(settings, start, _remembered(memory, settings.path))
    checkpoints = Checkpoints(log, token, settings.checkpoint_entries, settings.checkpoint_seconds)
    auditing = Auditing(log, checkpoints, memory, [])
    auditing._tasks += [  # noqa: SLF001 - its own
        asyncio.create_task(checkpoints.run()),
        asyncio.create_task(auditing._keep_in_mind()),  # noqa: SLF001 - its own
    ]
    return auditing


def _remember(memory: Path, log: AuditLog) -> None:
    """Write the head down; a failure only makes the memory older."""
    head = log.head
    text = json.dumps({"log": str(log.path), "seq": head.sequence, "digest": head.digest})
    with contextlib.suppress(OSError):
        whole_file.replace(memory, text.encode())


def _remembered(memory: Path, log: Path) -> Head | None:
    try:
        kept = json.loads(memory.read_bytes())
        return Head(int(kept["seq"]), str(kept["digest"])) if kept["log"] == str(log) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
