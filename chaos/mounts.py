"""Mounts that only this process and its children see, and that go with them; they need root."""

import ctypes
import os
import subprocess
from pathlib import Path

_CLONE_NEWNS = 0x00020000


def is_isolated() -> bool:
    """Give this process mounts and a /dev/shm of its own; tell whether that was allowed."""
    if os.geteuid() != 0 or ctypes.CDLL(None).unshare(_CLONE_NEWNS) != 0:
        return False
    return _done("mount", "--make-rprivate", "/") and mount_memory(Path("/dev/shm"), "4g")  # noqa: S108 - a mount


def mount_memory(folder: Path, size: str) -> bool:
    """Mount a memory file system of this size; tell whether that was allowed."""
    return _done("mount", "-t", "tmpfs", "-o", f"size={size},mode=0755", "tmpfs", str(folder))


def unmount(folder: Path) -> None:
    """Unmount it, whoever still has files open there."""
    _done("umount", "--lazy", str(folder))


def _done(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
