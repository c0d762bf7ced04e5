"""Set-atomic delivery into a shared directory, in the kubelet's layout.

    OUTPUT_DIR/..2026_01_31_12_00_00.000001/   the files and manifest.json of one generation
    OUTPUT_DIR/..data -> ..2026_01_31_…        swapped by one rename
    OUTPUT_DIR/pin -> ..data/pin               the plain names, made before the first swap

A reader that resolves `..data` once and reads inside sees one generation, whole. The generation
before stays for a few seconds for readers that are inside it, then `sweep` removes it.
"""

import fcntl
import hmac
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from vault_client.delivery import Permissions, Published, SecretSet
from vault_client.errors import TargetError
from vault_client.secret import Secret

MANIFEST = "manifest.json"
DATA = "..data"
_NEW_DATA = "..data_tmp"
_NEW_LINK = "..link_tmp"
_MEMORY_FILESYSTEMS = frozenset({"tmpfs", "ramfs"})


class Publisher:
    """The one writer of an output directory; a lock keeps a second one out."""

    def __init__(self, root: Path, permissions: Permissions, *, allow_disk: bool) -> None:
        self._root = root
        self._permissions = permissions
        self._allow_disk = allow_disk
        self._digest_key = secrets.token_bytes(32)
        self._lock: int | None = None

    def open(self) -> None:
        """Take the directory and clear what a killed publish left behind."""
        with _translated(self._root):
            self._root.mkdir(parents=True, exist_ok=True)
            if not self._allow_disk and not _memory_backed(self._root):
                raise TargetError(
                    f"{self._root} is not in memory, so the secrets would reach a disk",
                    hint="mount an emptyDir with medium Memory there, "
                    "or set VAULT_CLIENT_ALLOW_DISK=true for a test",
                )
            self._lock = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.close()
                raise TargetError(
                    f"another vault-client writes to {self._root}",
                    hint="give each one an OUTPUT_DIR of its own",
                ) from None
            self._clear_leftovers()

    def close(self) -> None:
        """Let go of the directory; what is published stays."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def current(self) -> Published | None:
        """Return what is in place, or None when nothing whole is."""
        return read_published(self._root)

    def holds(self, delivered: SecretSet) -> bool:
        """Return whether exactly this set is in place, with the modes it should have."""
        current = self.current()
        if current is None or current.version != delivered.version:
            return False
        folder = self._root / current.generation
        try:
            names = {entry.name for entry in folder.iterdir()} - {MANIFEST}
            return names == set(delivered.files) and all(
                self._matches(folder / name, secret) and self._linked(name)
                for name, secret in delivered.files.items()
            )
        except OSError:
            return False

    def stage(self, delivered: SecretSet, now: datetime) -> Published:
        """Write the set whole, as one new generation that is not in place yet, and return it."""
        generation = f"..{now:%Y_%m_%d_%H_%M_%S}.{secrets.token_hex(4)}"
        folder = self._root / generation
        with _translated(self._root):
            folder.mkdir(mode=0o700)
            try:
                self._fill(folder, delivered, self._manifest(generation, delivered, now))
            except BaseException:
                with suppress(OSError):  # what stopped the writing is told, not this
                    _shred(folder)
                raise
        return Published(generation, delivered.version, now)

    def put_in_place(self, staged: Published) -> None:
        """Have readers find this generation from now on."""
        with _translated(self._root):
            names = [path.name for path in (self._root / staged.generation).iterdir()]
            for name in names:
                if not self._linked(name):
                    self._swap_link(name, f"{DATA}/{name}", _NEW_LINK)
            self._swap_link(DATA, staged.generation, _NEW_DATA)
            self._unlink_names(keep=names)
            _sync(self._root)

    def discard(self, staged: Published) -> None:
        """Shred a generation that was staged, unless it came into place all the same."""
        folder = self._root / staged.generation
        with _translated(self._root):
            if folder in self._replaced():
                _shred(folder)

    def sweep(self, now: datetime, *, older_than_seconds: float = 10.0) -> None:
        """Shred the generations that were replaced at least so long ago."""
        with _translated(self._root):
            current = self.current()
            made = sorted((path.stat().st_ctime, path) for path in self._replaced())
            newest = (self._root / current.generation).stat().st_ctime if current else 0.0
            replaced_at = [*(when for when, _ in made[1:]), newest]
            for (_, folder), when in zip(made, replaced_at, strict=False):
                if now.timestamp() - when >= older_than_seconds:
                    _shred(folder)

    def wipe(self) -> None:
        """Take the set away: the names first, then every generation, overwritten."""
        with _translated(self._root):
            (self._root / DATA).unlink(missing_ok=True)
            self._unlink_names(keep=())
            for folder in self._replaced():
                _shred(folder)
            _sync(self._root)

    def _fill(self, folder: Path, delivered: SecretSet, manifest: bytes) -> None:
        for name, secret in delivered.files.items():
            with secret.view() as value:
                self._write(folder / name, value)
        self._write(folder / MANIFEST, memoryview(manifest))
        self._own(folder, self._permissions.directory_mode)
        _sync(folder)

    def _manifest(self, generation: str, delivered: SecretSet, now: datetime) -> bytes:
        digests: dict[str, str] = {}
        for name, secret in delivered.files.items():
            with secret.view() as value:
                digests[name] = hmac.digest(self._digest_key, value, "sha256").hex()
        content = {
            "generation": generation,
            "published_at": now.isoformat(),
            "kv_version": delivered.version,
            "hmac_sha256": digests,
        }
        return json.dumps(content, indent=1).encode()

    def _write(self, path: Path, value: memoryview) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = os.open(path, flags, 0o600)
        with os.fdopen(handle, "wb", buffering=0) as file:
            written = 0
            while written < len(value):
                written += file.write(value[written:]) or 0
            self._own(handle, self._permissions.file_mode)
            os.fsync(handle)

    def _own(self, target: int | Path, mode: int) -> None:
        os.chmod(target, mode)  # noqa: PTH101 - the target may be a descriptor
        uid, gid = self._permissions.uid, self._permissions.gid
        if uid is not None or gid is not None:
            os.chown(target, -1 if uid is None else uid, -1 if gid is None else gid)

    def _matches(self, path: Path, secret: Secret) -> bool:
        if stat.S_IMODE(path.stat().st_mode) != self._permissions.file_mode:
            return False
        found = Secret(path.read_bytes())
        try:
            return found == secret
        finally:
            found.wipe()

    def _linked(self, name: str) -> bool:
        path = self._root / name
        return path.is_symlink() and path.readlink() == Path(DATA, name)

    def _swap_link(self, name: str, target: str, temporary: str) -> None:
        fresh = self._root / temporary
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(target)
        fresh.replace(self._root / name)

    def _unlink_names(self, keep: list[str] | tuple[()]) -> None:
        for path in self._root.iterdir():
            ours = path.is_symlink() and path.readlink().parent == Path(DATA)
            if ours and path.name not in keep:
                path.unlink()

    def _replaced(self) -> list[Path]:
        data = self._root / DATA
        current = str(data.readlink()) if data.is_symlink() else ""
        return [
            path
            for path in self._root.iterdir()
            if path.name.startswith("..")
            and path.name != current
            and path.is_dir()
            and not path.is_symlink()
        ]

    def _clear_leftovers(self) -> None:
        for name in (_NEW_DATA, _NEW_LINK):
            (self._root / name).unlink(missing_ok=True)
        for folder in self._replaced():
            _shred(folder)


def read_published(root: Path) -> Published | None:
    """Return the generation in place under `root`, or None when none is there, whole."""
    try:
        generation = str((root / DATA).readlink())
        content = json.loads((root / generation / MANIFEST).read_bytes())
        version = content["kv_version"]
        digests: Mapping[str, str] = content["hmac_sha256"]
        if content["generation"] != generation or not all(
            (root / generation / name).is_file() for name in digests
        ):
            return None
        published_at = datetime.fromisoformat(content["published_at"])
        return Published(generation, None if version is None else int(version), published_at)
    except (
        *(OSError, ValueError, KeyError, TypeError, AttributeError),
        *(OverflowError, RecursionError),
    ):
        return None


@contextmanager
def _translated(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TargetError(
            f"{root} does not take the set: {error.strerror}",
            hint="it must be a writable directory, owned by or open to this user, with room left",
        ) from error


def _memory_backed(root: Path) -> bool:
    """Return whether the directory's device is tmpfs or ramfs (proc_pid_mountinfo(5))."""
    device = root.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2] == wanted:
            return after.split()[0] in _MEMORY_FILESYSTEMS
    return False


def _shred(folder: Path) -> None:
    """Overwrite each file in place, then remove the directory."""
    folder.chmod(0o700)
    for path in folder.iterdir():
        if path.is_file() and not path.is_symlink():
            path.chmod(0o600)
            with path.open("r+b", buffering=0) as file:
                file.write(bytes(path.stat().st_size))
        path.unlink()
    folder.rmdir()


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
