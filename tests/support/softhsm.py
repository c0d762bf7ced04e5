"""A throw-away SoftHSM2 token in a folder of its own."""

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

_MODULES = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
)


@dataclass(frozen=True, slots=True)
class SoftHsm:
    """A SoftHSM2 configuration with one token."""

    folder: Path
    label: str
    pin: str = field(repr=False)
    module: str

    @property
    def config(self) -> Path:
        return self.folder / "softhsm2.conf"

    @property
    def pin_file(self) -> Path:
        return self.folder / "pin"

    def environment(self) -> dict[str, str]:
        """Return a child's environment that reaches this token and names no secret."""
        return {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "HOME": os.environ.get("HOME", "/"),
            "SOFTHSM2_CONF": str(self.config),
            "P11_LIB": self.module,
            "P11_TOKEN": self.label,
            "P11_PIN_FILE": str(self.pin_file),
        }


def module_path() -> str:
    """Return the SoftHSM2 module's path; a missing one fails, it never skips."""
    for path in _MODULES:
        if Path(path).exists():
            return path
    raise RuntimeError("SoftHSM2 is not installed. Hint: apt-get install softhsm2")


def make_token(folder: Path, *, label: str = "mesh", pin: str = "271828") -> SoftHsm:
    """Return a new initialised token under `folder`."""
    hsm = configure(folder, label=label, pin=pin)
    add_token(hsm, label=label, pin=pin)
    return hsm


def add_token(hsm: SoftHsm, *, label: str, pin: str) -> None:
    """Initialise one more token of this configuration."""
    subprocess.run(
        [
            *("softhsm2-util", "--init-token", "--free", "--label", label),
            *("--so-pin", "31415926", "--pin", pin),
        ],
        env=os.environ | {"SOFTHSM2_CONF": str(hsm.config)},
        check=True,
        capture_output=True,
    )


def copy_token(source: Path, folder: Path, *, label: str, pin: str) -> SoftHsm:
    """Return a writable copy of a token folder made elsewhere."""
    hsm = configure(folder, label=label, pin=pin)
    for token in source.iterdir():
        shutil.copytree(token, folder / "tokens" / token.name)
    for path in (folder / "tokens").rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    return hsm


def configure(folder: Path, *, label: str, pin: str) -> SoftHsm:
    """Return a configuration with no token yet, its PIN file in place."""
    (folder / "tokens").mkdir(parents=True)
    hsm = SoftHsm(folder=folder, label=label, pin=pin, module=module_path())
    hsm.config.write_text(
        f"directories.tokendir = {folder / 'tokens'}\n"
        "objectstore.backend = file\n"
        "log.level = ERROR\n"
    )
    hsm.pin_file.write_text(pin)
    hsm.pin_file.chmod(0o400)
    return hsm
