"""A plugin of its own for the ceremony: started for one token, ended when the work is done.

The installer has no PKCS#11 driver; `hsm-plugin` has, with its guard against a second attempt
of a wrong PIN, which is remembered from one ceremony to the next.
"""

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from istio_hsm_installer import config
from istio_hsm_installer.errors import InputError, ToolError
from istio_hsm_installer.interruption import by_sigterm_too
from istio_hsm_installer.pkcs11_uri import KeyUri
from istio_hsm_installer.programs import Plugin

_START_SECONDS = 30.0
_STOP_SECONDS = 15.0
_POLL_SECONDS = 0.02
_MAX_LOG_BYTES = 1 << 20
_READY, _FAILED = "token.connected", "token.unavailable"


@contextmanager
def running(command: str, key: KeyUri) -> Iterator[Plugin]:
    """Yield a plugin that is logged in to the token; it ends with the block, by SIGTERM too."""
    for what, name in (("module-path", key.module), ("pin-source", key.pin_file)):
        if not Path(name).is_file():
            raise InputError(f"{what} {name} is no file", hint="correct the PKCS#11 URI")
    with by_sigterm_too(), _folder() as folder:
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [config.find_program(command), "serve"],
                env={
                    **config.child_environment(),
                    "P11_LIB": key.module,
                    "P11_TOKEN": key.token,
                    "P11_PIN_FILE": str(Path(key.pin_file).absolute()),
                    "SOCKET": str(folder / "s"),
                    "HSM_PLUGIN_STATE_DIR": str(config.state_folder()),
                    "LOG_FORMAT": "json",
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            _wait(process, folder / "log")
            yield Plugin(command, folder / "s")
        finally:
            _stop(process)


@contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="istio-hsm-root-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait(process: subprocess.Popen[bytes], log: Path) -> None:
    ends = time.monotonic() + _START_SECONDS
    while time.monotonic() < ends:
        for entry in _events(log):
            if entry.get("event") == _READY:
                return
            if entry.get("event") == _FAILED:
                raise ToolError(
                    f"the root's token cannot be used: {entry.get('message')}",
                    hint=str(entry.get("hint") or "see the PKCS#11 module's own log"),
                )
        if process.poll() is not None:
            raise ToolError(
                f"hsm-plugin ended with {process.returncode}: {_tail(log)}",
                hint="check module-path and token in the PKCS#11 URI",
            )
        time.sleep(_POLL_SECONDS)
    raise ToolError(
        f"hsm-plugin was not ready within {_START_SECONDS:g} s", hint="is the token reachable?"
    )


def _events(log: Path) -> Iterator[dict[str, object]]:
    for line in _read(log).splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            yield entry


def _tail(log: Path) -> str:
    return " / ".join(_read(log).strip().splitlines()[-2:])


def _read(log: Path) -> str:
    with log.open("rb") as file:
        return file.read(_MAX_LOG_BYTES).decode(errors="replace")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.wait()
