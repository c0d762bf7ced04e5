"""The Unix socket's file: claimed from a dead owner, never from a live one."""

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hsm_plugin.errors import ConfigError

_MODE_MASK = 0o117
"""umask that leaves 0660: the owner and the group may connect, the world may not."""


def claim(path: Path) -> None:
    """Make way for a new socket: remove one that a killed server left behind.

    ConfigError when a server still answers on it, or when it is no socket.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(
            f"{path} exists and is not a socket", hint="remove it, or choose another SOCKET"
        )
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except OSError as error:
            raise ConfigError(
                f"{path} cannot be checked: {error.strerror or error}",
                hint="see who owns the socket, or choose another SOCKET",
            ) from None
    raise ConfigError(
        f"another server answers on {path}", hint="stop it first, or choose another SOCKET"
    )


@contextmanager
def narrow_umask() -> Iterator[None]:
    """While inside, new sockets have mode 0660. Only before other threads create files."""
    before = os.umask(_MODE_MASK)
    try:
        yield
    finally:
        os.umask(before)


def share_with_group(path: Path, gid: int) -> bool:
    """Return true when the socket now belongs to the group; false when we may not give it."""
    try:
        os.chown(path, -1, gid)
    except PermissionError:
        return False
    return True
