"""Files that hold wrapped DEKs, replaced whole; and a stream that is read and answered once."""

import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from hsm_plugin import whole_file
from hsm_plugin.dek_document import KEK_ID
from hsm_plugin.errors import BadRequestError
from hsm_plugin.kek_rotation import ChangedError

MAX_FILE_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class DekFile:
    """One file."""

    path: Path

    @property
    def name(self) -> str:
        """Return its path."""
        return str(self.path)

    def read(self) -> bytes:
        """See Source."""
        try:
            with self.path.open("rb") as file:
                return _bounded(file, self.name)
        except OSError as error:
            raise BadRequestError(
                f"{self.path} cannot be read: {error.strerror}", hint="check the path and its mode"
            ) from None

    def replace(self, old: bytes, new: bytes) -> None:
        """See Source."""
        if self.read() != old:
            raise ChangedError(f"{self.path} was changed in the meantime")
        try:
            whole_file.replace(self.path, new, mode=stat.S_IMODE(self.path.stat().st_mode))
        except OSError as error:
            raise BadRequestError(
                f"{self.path} cannot be written: {error.strerror}",
                hint="check the folder and its mode; the file is as it was",
            ) from None


@dataclass(slots=True)
class DekStream:
    """One document that comes in and goes out, as between two ends of a pipe."""

    source: BinaryIO
    content: bytes | None = None

    @property
    def name(self) -> str:
        """Return what it is."""
        return "the standard input"

    def read(self) -> bytes:
        """See Source."""
        if self.content is None:
            self.content = _bounded(self.source, self.name)
        return self.content

    def replace(self, old: bytes, new: bytes) -> None:
        """See Source; whoever made this writes `content` afterwards."""
        del old
        self.content = new


def files_of(paths: Sequence[Path]) -> list[DekFile]:
    """Return the files, and those in folders: not hidden, not of folders below."""
    return [file for path in paths for file in _files_of(path)]


def _files_of(path: Path) -> list[DekFile]:
    try:
        if not path.is_dir():
            return [DekFile(path.resolve())]
        inside = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
        found = [DekFile(entry.resolve()) for entry in inside if entry.is_file()]
    except (OSError, RuntimeError) as error:  # the latter for a link that leads to itself
        reason = error.strerror if isinstance(error, OSError) else error
        raise BadRequestError(
            f"{path} cannot be read: {reason}", hint="check the path and its mode"
        ) from None
    if any(entry.name == KEK_ID for entry in inside):
        raise BadRequestError(
            f"{path} holds the keys of a Secret as files of their own",
            hint="two files cannot be replaced at once; rotate the Secret's JSON instead",
        )
    return found


def _bounded(file: BinaryIO, name: str) -> bytes:
    content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise BadRequestError(
            f"{name} is larger than {MAX_FILE_BYTES} bytes", hint="check that it is the right one"
        )
    return content
