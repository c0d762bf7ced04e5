"""What was begun and what was created, kept in a file that survives a crash. No secret is in it.

A step's intent is on disk before the step changes anything: whatever a killed run leaves behind
is known to be ours.
"""

import fcntl
import json
import os
from collections.abc import Collection, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from istio_hsm_installer.errors import InputError, StateError
from istio_hsm_installer.files import read_file, write_file

_VERSION = 1
_STARTED, _DONE = "started", "done"


class State:
    """The state of one installation."""

    def __init__(self, path: Path, installation: Mapping[str, str]) -> None:
        self._path = path
        self._installation = dict(installation)
        self._steps: dict[str, tuple[str, tuple[str, ...]]] = {}
        self.facts: MutableMapping[str, str] = {}
        """What steps remember beside what they created."""

        if path.exists():
            self._load()

    @property
    def interrupted(self) -> str | None:
        """The step in which an earlier apply stopped; None when it did not."""
        return next((name for name, (at, _) in self._steps.items() if at == _STARTED), None)

    def created(self, name: str) -> Collection[str]:
        """Return what this step created, or was about to create when it was killed."""
        return self._steps.get(name, ("", ()))[1]

    def start(self, name: str, created: Collection[str]) -> None:
        """Remember the intent before anything is changed."""
        known = dict.fromkeys([*self.created(name), *created])
        self._steps[name] = (_STARTED, tuple(known))
        self._save()

    def finish(self, name: str) -> None:
        """Remember that the step is done."""
        if name in self._steps:
            self._steps[name] = (_DONE, tuple(self.created(name)))
            self._save()

    def forget(self, name: str) -> None:
        """Remember nothing of the step; the file goes with the last one."""
        if self._steps.pop(name, None) is not None:
            self._save()

    def close(self) -> None:
        """Remove the file when nothing is left to remember."""
        if not self._steps:
            self._path.unlink(missing_ok=True)

    def _save(self) -> None:
        document = {
            "version": _VERSION,
            "installation": self._installation,
            "steps": {
                name: {"at": at, "created": list(created)}
                for name, (at, created) in self._steps.items()
            },
            "facts": dict(self.facts),
        }
        write_file(self._path, json.dumps(document, indent=1).encode() + b"\n", mode=0o600)

    def _load(self) -> None:
        try:
            document = _of_this_version(json.loads(read_file(self._path)))
            installation = {str(k): str(v) for k, v in document["installation"].items()}
            self.facts = {str(k): str(v) for k, v in document["facts"].items()}
            self._steps = {
                str(name): (_at(step["at"]), tuple(map(str, step["created"])))
                for name, step in document["steps"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise StateError(
                f"{self._path} is not a state file of this program",
                hint="move it away; what was created before is then taken for another's",
            ) from None
        for key, value in installation.items():
            if self._installation.get(key) != value:
                raise StateError(
                    f"{self._path} is of another installation: its {key} is {value}, "
                    f"and now it is {self._installation.get(key)}",
                    hint="name another file with --state, or correct --context or the file",
                )


@contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Hold the lock of the file; StateError when another process has it."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise InputError(f"{path} cannot be opened: {error.strerror}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise StateError(
            f"another istio-hsm is at work with {path}", hint="wait until it has ended"
        ) from None
    finally:
        os.close(handle)


def _of_this_version(document: dict[str, Any]) -> dict[str, Any]:
    if document["version"] != _VERSION:
        raise ValueError(document["version"])
    return document


def _at(text: object) -> str:
    if text not in {_STARTED, _DONE}:
        raise ValueError(text)
    return str(text)
