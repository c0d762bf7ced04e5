"""The command line run inside this process, its output caught."""

import contextlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

from istio_hsm_installer.cli import run


@dataclass(frozen=True, slots=True)
class Ran:
    """A command that ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on stdout."""
        [line] = self.out.splitlines()
        return json.loads(line)

    def outcomes(self) -> dict[str, str]:
        """Return what became of each step."""
        return {step["step"]: step["outcome"] for step in self.document["steps"]}


def run_cli(arguments: Sequence[str], environment: Mapping[str, str]) -> Ran:
    """Return how the command ended in an environment of its own."""
    out, err = io.StringIO(), io.StringIO()
    path = {"PATH": os.environ.get("PATH", os.defpath)}
    with (
        mock.patch("sys.stdin", io.StringIO()),
        mock.patch.dict(os.environ, path | dict(environment), clear=True),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = run(arguments)
    return Ran(code, out.getvalue(), err.getvalue())
