"""The folder that a stock istiod reads as its plugged-in CA: all four files at once, or none.

Laid out as a kubelet lays out a Secret: each file is a link through `..data`, one link that is
swapped. istiod makes a CA of its own for good when it finds none of the files, and exits when it
finds some, so it never sees a part of a set; and it watches the folder for a renewed one.
"""

import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from cryptography.hazmat.primitives import hashes

from istiod_ca_bridge.authority import Authority
from istiod_ca_bridge.chain import pem_of
from istiod_ca_bridge.errors import BridgeError, ConfigError
from istiod_ca_bridge.hsm_key import MemoryKey
from istiod_ca_bridge.signer import Signer

KEY = "ca-key.pem"
FILES = (KEY, "ca-cert.pem", "cert-chain.pem", "root-cert.pem")

_OTHER_FORM = "tls.crt"
"""With this file there, istiod would read a kubernetes.io/tls set instead."""

_DATA = "..data"
_NEW_DATA = "..new-data"
_NEW_LINK = "..new-link"
_SET_PREFIX = "..set-"
_KEY_MODE = 0o400
_MODE = 0o440
_GRACE_SECONDS = 0.5
_MEMORY_FILESYSTEMS = {"tmpfs", "ramfs"}


class PlugInDirectory:
    """Writes the CA of an authority whose key was unwrapped into memory."""

    def __init__(self, root: Path, *, allow_disk: bool, wipe: bool) -> None:
        self._root = root
        self._allow_disk = allow_disk
        self._wipe = wipe
        self._lock = threading.Lock()
        self._closed = False

    def prepare(self) -> None:
        """Return when the folder may hold a key; ConfigError says why not.

        What was there stays: an istiod that starts again must find it.
        """
        with self._translated():
            if not self._root.is_dir():
                raise ConfigError(
                    f"CA_PLUG_IN_DIR: {self._root} is not a directory",
                    hint="mount a volume of `emptyDir: {medium: Memory}` there",
                )
            if not self._allow_disk and not _in_memory(self._root):
                raise ConfigError(
                    f"CA_PLUG_IN_DIR: {self._root} is not in memory, and a CA key would lie in it",
                    hint="mount an `emptyDir: {medium: Memory}`; CA_PLUG_IN_ALLOW_DISK=true puts "
                    "the key on the disk all the same",
                )
            for name in (*FILES, _OTHER_FORM):
                path = self._root / name
                if os.path.lexists(path) and not self._linked(name):
                    raise ConfigError(
                        f"CA_PLUG_IN_DIR: {path} was put there by something else",
                        hint="give this program a folder of its own",
                    )
            self._clear_leftovers()

    def publish(self, authority: Authority, key: Signer) -> bool:
        """Have the folder hold this CA and its key; return whether anything changed.

        Takes as long as a reader of the set before may need. BridgeError when it cannot be
        written now.
        """
        if not isinstance(key, MemoryKey):
            raise ConfigError("only a sealed CA key can be given to istiod", hint="BRIDGE_MODE")
        files = {
            KEY: key.private_pem(),
            "ca-cert.pem": pem_of(authority.chain.ca).encode(),
            "cert-chain.pem": authority.intermediates_pem.encode(),
            "root-cert.pem": authority.roots_pem.encode(),
        }
        with self._lock, self._translated():
            if self._closed or self._holds(files):
                return False
            replaces = (self._root / _DATA).is_symlink()
            self._swap(files)
            if replaces:
                time.sleep(_GRACE_SECONDS)
            self._clear_leftovers()
            return True

    def close(self) -> None:
        """Overwrite and remove the files, when the operator wants that."""
        with self._lock, self._translated():
            self._closed = True
            if self._wipe:
                (self._root / _DATA).unlink(missing_ok=True)
                for name in FILES:
                    (self._root / name).unlink(missing_ok=True)
                self._clear_leftovers()

    def _holds(self, files: Mapping[str, bytes]) -> bool:
        try:
            return all(
                _digest((self._root / name).read_bytes()) == _digest(content)
                and (self._root / name).stat().st_mode & 0o777 == _mode(name)
                and self._linked(name)
                for name, content in files.items()
            )
        except OSError:
            return False

    def _swap(self, files: Mapping[str, bytes]) -> None:
        folder = Path(tempfile.mkdtemp(prefix=_SET_PREFIX, dir=self._root))
        try:
            _fill(folder, files)
        except OSError:
            _shred(folder)
            raise
        for name in FILES:  # before the first swap they lead nowhere: none of the files is there
            if not self._linked(name):
                self._link(name)
        self._replace(_DATA, folder.name, _NEW_DATA)
        for name in FILES:  # an older istiod listens for events on these names only
            self._link(name)

    def _link(self, name: str) -> None:
        self._replace(name, f"{_DATA}/{name}", _NEW_LINK)

    def _replace(self, name: str, target: str, temporary: str) -> None:
        fresh = self._root / temporary
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(target)
        fresh.replace(self._root / name)

    def _linked(self, name: str) -> bool:
        path = self._root / name
        return path.is_symlink() and path.readlink() == Path(_DATA, name)

    def _clear_leftovers(self) -> None:
        """Shred each set that is not the one in use."""
        data = self._root / _DATA
        current = str(data.readlink()) if data.is_symlink() else ""
        for name in (_NEW_DATA, _NEW_LINK):
            (self._root / name).unlink(missing_ok=True)
        for folder in self._root.glob(f"{_SET_PREFIX}*"):
            if folder.name != current and folder.is_dir() and not folder.is_symlink():
                _shred(folder)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise BridgeError(
                f"CA_PLUG_IN_DIR: {self._root} does not take the CA's files: {error.strerror}",
                hint="it must be a writable directory of this user, with room left",
            ) from error


def _fill(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with os.fdopen(os.open(folder / name, flags, 0o600), "wb", buffering=0) as file:
            file.write(content)
            os.fchmod(file.fileno(), _mode(name))
            os.fsync(file.fileno())
    folder.chmod(0o750)


def _mode(name: str) -> int:
    return _KEY_MODE if name == KEY else _MODE


def _digest(content: bytes) -> bytes:
    digest = hashes.Hash(hashes.SHA256())
    digest.update(content)
    return digest.finalize()


def _in_memory(root: Path) -> bool:
    """Return whether the folder's device is tmpfs or ramfs (proc_pid_mountinfo(5))."""
    device = root.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2] == wanted:
            return after.split()[0] in _MEMORY_FILESYSTEMS
    return False


def _shred(folder: Path) -> None:
    """Overwrite each file in place, then remove the folder."""
    folder.chmod(0o700)
    for path in folder.iterdir():
        if path.is_file() and not path.is_symlink():
            path.chmod(0o600)
            with path.open("r+b", buffering=0) as file:
                file.write(bytes(path.stat().st_size))
        path.unlink()
    folder.rmdir()
