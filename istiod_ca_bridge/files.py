"""Files and folders that appear whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path


def replace_file(path: Path, content: bytes, mode: int) -> None:
    """Write a file over whatever was there."""
    descriptor, name = tempfile.mkstemp(prefix=".new-", dir=path.parent)
    temporary = Path(name)
    try:
        _fill(descriptor, content, mode)
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def create_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """Make a folder (0700) of files (0400); OSError when it is there and not empty."""
    temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=path.parent))
    try:
        for name, content in files.items():
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            _fill(os.open(temporary / name, flags, 0o600), content, 0o400)
        sync_folder(temporary)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(path.parent)


def remove_folder(path: Path) -> None:
    """Have a folder be gone at once and whole; FileNotFoundError when there is none."""
    doomed = Path(tempfile.mkdtemp(prefix=".old-", dir=path.parent))
    try:
        path.rename(doomed)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(doomed, ignore_errors=True)


def _fill(descriptor: int, content: bytes, mode: int) -> None:
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fchmod(file.fileno(), mode)
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Return when the names in the folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
