"""One Secret that is written over, as a folder of a directory store; its version is its content."""

import asyncio
import fcntl
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from istiod_ca_bridge.directory_store import DirectoryStore
from istiod_ca_bridge.errors import SecretExistsError, StoreUnavailableError
from istiod_ca_bridge.files import replace_file
from istiod_ca_bridge.store import StoredSecret


class DirectorySecret:
    """A ReplaceableSecret; each value is replaced whole, in the order given."""

    def __init__(self, directory: Path, name: str) -> None:
        self._store = DirectoryStore(directory)
        self._directory = directory
        self._name = name

    async def read(self) -> StoredSecret | None:
        """Return the values; None when there is no folder."""
        values = await self._store.read(self._name)
        return None if values is None else StoredSecret(values, _version(values))

    async def write(self, values: Mapping[str, bytes], version: str | None) -> None:
        """Make the folder, or replace the values of that version of it."""
        if version is None:
            await self._store.create(self._name, values)
            return
        lock = await asyncio.to_thread(self._lock)
        try:
            stored = await self.read()
            if stored is None or stored.version != version:
                raise SecretExistsError(f"{self._name} was written by another")
            for key, value in values.items():
                if stored.values.get(key) != value:
                    path = self._directory / self._name / key
                    await asyncio.to_thread(replace_file, path, value, 0o400)
        except OSError as error:
            raise StoreUnavailableError(
                f"{self._name} cannot be written: {error.strerror}", hint="look at BRIDGE_STORE_DIR"
            ) from None
        finally:
            os.close(lock)

    def _lock(self) -> int:
        try:
            descriptor = os.open(self._directory / self._name, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            raise StoreUnavailableError(
                f"{self._name} cannot be locked: {error.strerror}"
            ) from None
        return descriptor


def _version(values: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for key, value in sorted(values.items()):
        digest.update(f"{key}\0{len(value)}\0".encode() + value)
    return digest.hexdigest()
