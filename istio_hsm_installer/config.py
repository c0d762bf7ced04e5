"""What the environment says: the only reader of it."""

import getpass
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from istio_hsm_installer.errors import InputError, ToolMissingError
from istio_hsm_installer.files import read_file

_PASSED_ON = ("HOME", "PATH", "LANG", "LC_ALL", "USER", "KUBECONFIG", "TMPDIR")
_OF_MODULES = ("SOFTHSM2_CONF", "ChrystokiConfigurationPath")
"""Where PKCS#11 modules look for their own settings."""


@dataclass(frozen=True, slots=True)
class Secret:
    """Bytes that show themselves only to `reveal`."""

    _value: bytes

    def __repr__(self) -> str:
        return "Secret(...)"

    def reveal(self) -> bytes:
        """Return the bytes."""
        return self._value

    def text(self) -> str:
        """Return them as text."""
        return self._value.decode()


def vault_token(token_file: Path | None) -> Secret:
    """Return the operator's token: of the file, of VAULT_TOKEN_FILE's, or asked for."""
    named = named_vault_token(token_file)
    if named is None:
        return ask("Vault token", hint="name a file with --vault-token-file or in VAULT_TOKEN_FILE")
    return named


def named_vault_token(token_file: Path | None) -> Secret | None:
    """Return the operator's token of the file or of VAULT_TOKEN_FILE's; None without one."""
    named = os.environ.get("VAULT_TOKEN_FILE")
    path = token_file or (Path(named) if named else None)
    return None if path is None else secret_file(path)


def secret_file(path: Path) -> Secret:
    """Return the file's one line; InputError, which quotes nothing, when it is none."""
    content = read_file(path).strip(b"\r\n")
    if not content or not content.isascii() or b"\n" in content:
        raise InputError(f"{path} does not hold one line of ASCII", hint="write nothing else in it")
    return Secret(content)


def ask(what: str, *, hint: str) -> Secret:
    """Return what a person types unseen; InputError without a terminal or an answer."""
    if not sys.stdin.isatty():
        raise InputError(f"there is no terminal to ask for the {what} on", hint=hint)
    answer = getpass.getpass(f"{what}: ").encode()
    if not answer:
        raise InputError(f"no {what} was given", hint=hint)
    return Secret(answer)


def child_environment() -> Mapping[str, str]:
    """Return what programs started from here may know: no token, no proxy."""
    known = (*_PASSED_ON, *_OF_MODULES)
    return {name: os.environ[name] for name in known if name in os.environ}


def state_folder() -> Path:
    """Return the folder for what is remembered between runs, made when it was not there."""
    base = os.environ.get("XDG_STATE_HOME") or str(Path("~/.local/state").expanduser())
    folder = Path(base) / "istio-hsm"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be made: {error.strerror}", hint="set XDG_STATE_HOME"
        ) from None
    return folder


def find_program(name: str) -> str:
    """Return the program's path, also beside this interpreter; ToolMissingError otherwise."""
    beside = Path(sys.executable).parent / name
    found = shutil.which(name) or (str(beside) if beside.is_file() else None)
    if found is None:
        raise ToolMissingError(f"{name} is not installed", hint="install it, or set its path")
    return found
