"""Files of an operator: read with a limit, written whole or not at all."""

import os
import re
import tempfile
from pathlib import Path

from istio_hsm_installer.errors import InputError

MAX_FILE_BYTES = 1 << 20
_MARK = re.compile(rb"-----(BEGIN|END) [A-Z0-9 ]+-----")


def read_file(path: Path) -> bytes:
    """Return the content; InputError when it cannot be read or is too large."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror}", hint="check the path and its mode"
        ) from None
    if len(content) > MAX_FILE_BYTES:
        raise InputError(f"{path} is larger than {MAX_FILE_BYTES} bytes")
    return content


def read_pem(path: Path) -> bytes:
    """Return a PEM file as it is; InputError when its line breaks are lost.

    Some readers accept that, and others, such as OpenSSL's, do not.
    """
    content = read_file(path)
    marks = [line for line in content.splitlines() if b"-----" in line]
    if not marks or not all(_MARK.fullmatch(line) for line in marks):
        raise InputError(
            f"{path} is not PEM: its BEGIN and END do not stand on lines of their own",
            hint="a PEM that passed through an unquoted echo has lost its line breaks",
        )
    return content


def write_file(path: Path, content: bytes, *, mode: int, hint: str = "check its folder") -> None:
    """Replace the file in one step that survives a crash; InputError when it cannot be."""
    name = ""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(mode)
        Path(name).replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        if name:
            Path(name).unlink(missing_ok=True)
        raise InputError(f"{path} cannot be written: {error.strerror}", hint=hint) from None


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
