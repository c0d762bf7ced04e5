"""Secrets as folders: <directory>/<secret name>/<key>, each folder made whole."""

import asyncio
import errno
from collections.abc import Mapping
from pathlib import Path

from istiod_ca_bridge.errors import SecretExistsError, StoreUnavailableError
from istiod_ca_bridge.files import create_folder, remove_folder
from istiod_ca_bridge.store import MAX_SECRET_BYTES


class DirectoryStore:
    """A SecretStore on a file system."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def read(self, name: str) -> Mapping[str, bytes] | None:
        """Return the values of the folder's files; None when there is no folder."""
        return await asyncio.to_thread(self._read, name)

    async def create(self, name: str, values: Mapping[str, bytes]) -> None:
        """Make the folder, or raise SecretExistsError."""
        await asyncio.to_thread(self._create, name, values)

    async def delete(self, name: str) -> None:
        """Move the folder away at once, then remove it."""
        await asyncio.to_thread(self._delete, name)

    def _read(self, name: str) -> Mapping[str, bytes] | None:
        values: dict[str, bytes] = {}
        room = MAX_SECRET_BYTES
        try:
            for path in sorted((self._directory / name).iterdir()):
                if path.name.startswith(".") or not path.is_file():
                    continue
                with path.open("rb") as file:
                    values[path.name] = file.read(room + 1)
                room -= len(values[path.name])
                if room < 0:
                    raise StoreUnavailableError(f"{name} has more than {MAX_SECRET_BYTES} bytes")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreUnavailableError(
                f"{name} cannot be read: {error.strerror}", hint="look at BRIDGE_STORE_DIR"
            ) from error
        return values

    def _create(self, name: str, values: Mapping[str, bytes]) -> None:
        if (self._directory / name).exists():
            raise SecretExistsError(f"{name} exists")
        try:
            create_folder(self._directory / name, values)
        except OSError as error:
            if error.errno in {errno.ENOTEMPTY, errno.EEXIST}:
                raise SecretExistsError(f"{name} exists") from None
            raise StoreUnavailableError(
                f"{name} cannot be written: {error.strerror}", hint="look at BRIDGE_STORE_DIR"
            ) from error

    def _delete(self, name: str) -> None:
        try:
            remove_folder(self._directory / name)
        except FileNotFoundError:
            return
        except OSError as error:
            raise StoreUnavailableError(
                f"{name} cannot be removed: {error.strerror}", hint="look at BRIDGE_STORE_DIR"
            ) from error
