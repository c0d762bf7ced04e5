"""Where the pages' blocks are really run: an operator's folder, and what stands around it.

Real: bash, kubectl, hsm-plugin, istio-hsm, SoftHSM2, OpenBao, the Kubernetes API, the bridge.
Stand-ins: istioctl, which the tests do not have, and an editor that fills in istio-hsm.yaml.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.docs.pages import Block
from tests.docs.shell_text import statements
from tests.support.kube_process import dying_with_parent

SOCKET = "/tmp/.hsm-sock"  # noqa: S108 - as the pages write it
"""The plugin's, where a page starts one by hand."""

_BIN = Path(sys.executable).parent
_FILE_NAME = re.compile(r"# ([a-z0-9_./-]+\.(?:yaml|hcl|ext))\n")
_SECONDS = 240
_WRONG_EXIT = 97


class PageError(AssertionError):
    """A statement of a page did not end as the page says."""


class Sandbox:
    """A folder in which blocks are run, one shell for all of them."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self.replaced: dict[str, str] = {}
        """What stands for the page's addresses and paths."""

        self.environment = dict(environment)
        self._programs = folder / "bin"
        self._programs.mkdir(parents=True)

    def program(self, name: str, target: Path | str) -> None:
        """Put a program, or a script of this text, on the PATH."""
        path = self._programs / name
        if isinstance(target, Path):
            path.symlink_to(target)
        else:
            path.write_text(target)
            path.chmod(0o755)

    def write_files_of(self, blocks: Iterable[Block]) -> None:
        """Write each block whose first line names a file, as the page's reader would."""
        for block in blocks:
            if named := _FILE_NAME.match(block.text):
                path = self.folder / named[1]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(self._translated(block.text))

    def run(self, blocks: Iterable[Block]) -> str:
        """Return what the blocks wrote; PageError names the first statement that failed."""
        script = self._script(blocks)
        with subprocess.Popen(
            dying_with_parent(["bash", "-c", script]),
            cwd=self.folder,
            env={
                "PATH": f"{self._programs}:{_BIN}:{os.environ.get('PATH', os.defpath)}",
                "HOME": str(self.folder),
                "NO_COLOR": "1",
                **self.environment,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as shell:
            try:
                told, _ = shell.communicate(timeout=_SECONDS)
            finally:
                _end_group(shell.pid)
        if shell.returncode != 0:
            raise PageError(told)
        return told

    def _script(self, blocks: Iterable[Block]) -> str:
        lines = ["set -u -o pipefail", "trap 'kill $(jobs -p) 2>/dev/null' EXIT"]
        for block in blocks:
            for statement in statements(block):
                codes = "|".join(str(code) for code in sorted(statement.exit_codes()))
                told = f"{statement.page}:{statement.line} ended with"
                ending = f'echo "{told} $_ended" >&2; exit {_WRONG_EXIT}'
                lines += [
                    self._translated(statement.text),
                    f"_ended=$?; case $_ended in {codes}) ;; *) {ending} ;; esac",
                ]
        return "\n".join([*lines, "exit 0"])

    def _translated(self, text: str) -> str:
        for original, here in self.replaced.items():
            text = text.replace(original, here)
        return text


def _end_group(leader: int) -> None:
    """End what the shell left in the background."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return
