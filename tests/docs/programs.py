"""Who judges a command of the pages: each program's own parser, without running the program."""

import contextlib
import io
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from unittest import mock

import typer.core
import typer.main

import bench.__main__
import chaos.__main__
import hsm_plugin.cli
import istiod_ca_bridge.cli
import vault_client.__main__
from istio_hsm_installer.cli import app
from tests.docs.pages import REPOSITORY
from tests.support import kubectl

Judge = Callable[[Sequence[str]], None]

READ_ONLY = {
    "helm": "no chart of Istio is in the tests; tests/e2e/test_manifests.py applies the values",
    "istioctl": "tests/e2e/test_manifests.py applies the overlays to the same Deployment",
    "apt-get": "it would install packages",
    "mmdebstrap": "tests/images does it",
    "buildah": "tests/images does it",
    "curl": "it would reach the internet",
    "vault": "`bao` stands for it where the block is run",
}
"""Commands that no parser judges and no test runs, each with the reason."""

SHELL_WORDS = frozenset(
    {"export", "cd", "mkdir", "cp", "cat", "printf", "echo", "sleep", "kill", "base64", "unset"}
    | {"openssl", "tar", "sha256sum", "test", "umask", "jq", "wait", "ls", "grep", "cut", "cmp"}
    | {"${EDITOR:-vi}"}
)
"""What every machine of an operator has; their arguments are judged where the block is run."""


class WrongCommandError(ValueError):
    """No program takes this command."""


def judge(words: Sequence[str]) -> None:
    """Return when the program that is named takes its arguments; else WrongCommandError."""
    name, arguments = words[0], words[1:]
    if name in _JUDGES:
        _JUDGES[name](arguments)
    elif name.startswith("scripts/"):
        _script(name, arguments)
    elif name not in READ_ONLY and name not in SHELL_WORDS:
        raise WrongCommandError(f"{name}: nobody judges it")


def _argparse(parse: Callable[[Sequence[str]], object]) -> Judge:
    def judge_arguments(arguments: Sequence[str]) -> None:
        told = io.StringIO()
        try:
            with contextlib.redirect_stderr(told), contextlib.redirect_stdout(told):
                parse(arguments)
        except SystemExit as ended:
            if ended.code not in {0, None}:
                raise WrongCommandError(told.getvalue()) from None

    return judge_arguments


def _installer(arguments: Sequence[str]) -> None:
    command, path, rest = typer.main.get_command(app), "istio-hsm", list(arguments)
    try:
        while True:
            if rest == ["--help"]:
                return
            context = command.make_context(path, list(rest), resilient_parsing=False)
            if not isinstance(command, typer.core.TyperGroup):
                return
            name, command, rest = command.resolve_command(  # type: ignore[assignment]
                context, [*context._protected_args, *context.args]
            )
            path = f"{path} {name}"
    except typer.exceptions.TyperException as error:
        raise WrongCommandError(f"{path}: {error.format_message()}") from None


def _python(arguments: Sequence[str]) -> None:
    if arguments[:2] == ["-m", "chaos"]:
        with mock.patch.object(sys, "argv", ["chaos", *arguments[2:]]):
            _argparse(lambda _: chaos.__main__._options())(arguments)
            return
    if arguments[:2] == ["-m", "bench"]:
        with mock.patch.object(sys, "argv", ["bench", *arguments[2:]]):
            _argparse(lambda _: bench.__main__._options())(arguments)
        return
    path = REPOSITORY.joinpath(*"".join(arguments[1:2]).split("."))
    runnable = path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()
    if arguments[:1] != ["-m"] or not runnable:
        raise WrongCommandError(f"python: there is no module {arguments[1:2]}")


def _make(arguments: Sequence[str]) -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    if unknown := [target for target in arguments if target not in targets]:
        raise WrongCommandError(f"make: no target {', '.join(unknown)}")


def _script(name: str, arguments: Sequence[str]) -> None:
    if not (REPOSITORY / name).is_file():
        raise WrongCommandError(f"{name} is not there")
    images = {path.parent.name for path in REPOSITORY.glob("images/*/Dockerfile")}
    if name == "scripts/build-image.sh" and not set(arguments) <= images:
        raise WrongCommandError(f"{name}: no image {arguments}")


def _kubectl(arguments: Sequence[str]) -> None:
    """Its flags are parsed before --help is answered, so nothing is asked of a cluster."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    words = [str(kubectl.program()), *arguments[:end], "--help"]
    asked = subprocess.run(words, capture_output=True, text=True, check=False)
    verb = next(iter(arguments), "")
    if asked.returncode != 0 or "kubectl controls the Kubernetes" in asked.stdout:
        raise WrongCommandError(f"kubectl {verb}: {asked.stderr}")
    if inside := arguments[end + 1 :]:
        judge(inside)


_HSM_PLUGIN = _argparse(lambda words: hsm_plugin.cli._parser().parse_args(words))
_JUDGES: dict[str, Judge] = {
    "hsm-plugin": _HSM_PLUGIN,
    "k8s-kms-plugin": _HSM_PLUGIN,
    "vault-client": _argparse(lambda words: vault_client.__main__._parser().parse_args(words)),
    "istiod-ca-bridge": _argparse(lambda words: istiod_ca_bridge.cli._parser().parse_args(words)),
    "istio-hsm": _installer,
    "python": _python,
    "make": _make,
    "kubectl": _kubectl,
}

OURS = frozenset({"hsm-plugin", "k8s-kms-plugin", "vault-client", "istiod-ca-bridge", "istio-hsm"})
"""The programs of this repository."""
