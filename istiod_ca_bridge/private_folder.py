"""A folder of this process's own in memory; what killed processes left is cleared away."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_MEMORY = Path("/dev/shm")  # noqa: S108 - a fresh 0700 folder is made in it
_PREFIX = "istiod-ca-bridge-"


@contextlib.contextmanager
def private_folder(parent: Path = _MEMORY) -> Iterator[Path]:
    """Make a folder that only this user may enter, in memory where the host has that.

    Its lock says that its process lives: the kernel lets go of it however the process ends, and
    also when the process is in another container.
    """
    if not os.access(parent, os.W_OK):
        parent = Path(tempfile.gettempdir())
    _clear_leftovers(parent)
    folder, lock = _make(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _make(parent: Path) -> tuple[Path, int]:
    """Return a folder and its lock; another process may take a folder for a leftover before."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        lock = _locked(folder)
        if lock is not None:
            if folder.is_dir():
                return folder, lock
            os.close(lock)


def _clear_leftovers(parent: Path) -> None:
    for folder in parent.glob(f"{_PREFIX}*"):
        lock = _locked(folder)
        if lock is not None:
            try:
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def _locked(folder: Path) -> int | None:
    """Return the lock of a folder of this user; None for anything else, or one in use."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if os.fstat(handle).st_uid == os.geteuid():
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return handle
    except OSError:
        pass
    os.close(handle)
    return None
