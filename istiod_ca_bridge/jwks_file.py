"""The token issuer's public keys in a file, read again when it changes."""

import asyncio
import json
import os
from collections.abc import Mapping
from pathlib import Path

import jwt

from istiod_ca_bridge.authn import key_set
from istiod_ca_bridge.errors import ConfigError
from istiod_ca_bridge.log import EventLog

_MAX_BYTES = 256 << 10
_POLL_SECONDS = 5.0

_Signature = tuple[int, int, int]


class JwksFile:
    """Keys by id; a broken new file is refused and the old keys stay."""

    def __init__(self, path: Path, log: EventLog) -> None:
        self._path = path
        self._log = log
        self._signature, self._keys = _load(path)

    def keys(self) -> Mapping[str, jwt.PyJWK]:
        """Return the keys to trust now."""
        return self._keys

    async def watch(self) -> None:
        """Take up changes until cancelled."""
        refused = ""
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            try:
                signature, keys = await asyncio.to_thread(_load, self._path)
            except ConfigError as error:
                if str(error) != refused:
                    refused = str(error)
                    self._log.warning("jwks.refused", reason=refused, hint="the old keys stay")
                continue
            refused = ""
            if signature != self._signature:
                self._signature, self._keys = signature, keys
                self._log.info("jwks.loaded", keys=len(keys))


def _load(path: Path) -> tuple[_Signature, dict[str, jwt.PyJWK]]:
    try:
        with path.open("rb") as file:
            facts = os.fstat(file.fileno())
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise ConfigError(f"JWKS_FILE: {path} has more than {_MAX_BYTES} bytes")
        document = json.loads(content)
    except OSError as error:
        raise ConfigError(f"JWKS_FILE: {path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise ConfigError(f"JWKS_FILE: {path} is not JSON") from None
    return (facts.st_ino, facts.st_mtime_ns, facts.st_size), key_set(document)
