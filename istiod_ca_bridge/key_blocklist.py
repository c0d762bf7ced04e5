"""Public keys that get no certificate, by digest, in a file that is read again when it changes."""

import asyncio
import os
import re
from pathlib import Path

from istiod_ca_bridge.errors import ConfigError
from istiod_ca_bridge.log import EventLog

_MAX_BYTES = 64 << 20
_POLL_SECONDS = 2.0
_DIGEST = re.compile(r"[0-9a-f]{64}")

_Signature = tuple[int, int, int]


class KeyBlocklist:
    """SHA-256 digests of SubjectPublicKeyInfos; a broken new file is refused, the old one stays."""

    def __init__(self, path: Path, log: EventLog, poll_seconds: float = _POLL_SECONDS) -> None:
        self._path = path
        self._log = log
        self._poll_seconds = poll_seconds
        self._signature, self._digests = _load(path)

    def __contains__(self, digest: object) -> bool:
        return digest in self._digests

    async def watch(self) -> None:
        """Take up changes until cancelled."""
        refused = ""
        while True:
            await asyncio.sleep(self._poll_seconds)
            try:
                if await asyncio.to_thread(_signature, self._path) == self._signature:
                    refused = ""
                    continue
                self._signature, self._digests = await asyncio.to_thread(_load, self._path)
            except ConfigError as error:
                if str(error) != refused:
                    refused = str(error)
                    self._log.warning(
                        "key_blocklist.refused", reason=refused, hint="the old one stays in force"
                    )
                continue
            refused = ""
            self._log.info("key_blocklist.loaded", keys=len(self._digests))


def _signature(path: Path) -> _Signature:
    try:
        return _signature_of(path.stat())
    except OSError as error:
        raise _unreadable(path, error) from None


def _load(path: Path) -> tuple[_Signature, frozenset[bytes]]:
    try:
        with path.open("rb") as file:
            facts = os.fstat(file.fileno())
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise _unreadable(path, error) from None
    if len(content) > _MAX_BYTES:
        raise ConfigError(f"KEY_BLOCKLIST_FILE: {path} has more than {_MAX_BYTES} bytes")
    digests = set()
    for number, line in enumerate(content.decode("ascii", "replace").splitlines(), 1):
        entry = line.partition("#")[0].strip().lower().replace(":", "")
        if entry and not _DIGEST.fullmatch(entry):
            raise ConfigError(
                f"KEY_BLOCKLIST_FILE: line {number} of {path} is no SHA-256 in hexadecimal",
                hint="openssl pkey -pubin -outform DER -in key.pub | sha256sum",
            )
        if entry:
            digests.add(bytes.fromhex(entry))
    return _signature_of(facts), frozenset(digests)


def _signature_of(facts: os.stat_result) -> _Signature:
    return facts.st_ino, facts.st_mtime_ns, facts.st_size


def _unreadable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"KEY_BLOCKLIST_FILE: {path} cannot be read: {error.strerror}")
