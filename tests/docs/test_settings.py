"""Pages, --help and programs name the same settings."""

import argparse
import ast
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import typer.main

import bench.__main__
import chaos.__main__
import hsm_plugin.cli
import istiod_ca_bridge.cli
import vault_client.__main__
from istio_hsm_installer.cli import app
from istio_hsm_installer.schema import json_schema
from tests.docs.pages import REPOSITORY, code_words, page, pages, rows
from vault_client.errors import Cause

_NAME = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+|SOCKET|KUBECONFIG")
_FLAG = re.compile(r"--[a-z][a-z0-9-]*")

NOT_OURS = frozenset(
    {"KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT", "KUBERNETES_SERVICE_PORT_HTTPS"}
)
"""Variables that Kubernetes gives each container."""

FOREIGN_FLAGS: Mapping[str, str] = {
    "--require-hashes": "pip",
    "--set": "istioctl",
    "--decode": "base64",
    "--install-completion": "typer",
}
"""Flags in sentences of the pages that are not of our programs, and whose they are."""


COMMON_FLAGS = frozenset({"--help", "--version", "--install-completion", "--show-completion"})
"""Flags that every program of their kind has."""


def variables(*modules: str) -> set[str]:
    """Return the variables that the modules read: first arguments that look like one."""
    found = set()
    for module in modules:
        for node in ast.walk(ast.parse((REPOSITORY / module).read_text())):
            if isinstance(node, ast.Call):
                first = node.args[0] if node.args else None
                if isinstance(first, ast.Constant) and isinstance(first.value, str):
                    found |= {first.value} if _NAME.fullmatch(first.value) else set()
    return found - NOT_OURS


def config_modules(package: str) -> list[str]:
    """Return the modules of a package that read or judge settings."""
    paths = [REPOSITORY / package / "config.py", *(REPOSITORY / package).glob("*settings.py")]
    return [str(path.relative_to(REPOSITORY)) for path in paths]


def first_cells(name: str, heading: str) -> set[str]:
    """Return the variables of the first column of a section's tables."""
    cells = [row[0] for row in rows(page(name).section(heading))]
    return {word for cell in cells for word in code_words(cell) if _NAME.fullmatch(word)}


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield the parser and those of its commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from parsers(child)


def flags(parser: argparse.ArgumentParser, *, hidden: bool = True) -> set[str]:
    """Return the long flags of one parser."""
    return {
        flag
        for action in parser._actions
        for flag in action.option_strings
        if flag.startswith("--") and (hidden or action.help != argparse.SUPPRESS)
    }


def options(parser: argparse.ArgumentParser) -> set[frozenset[str]]:
    """Return the spellings of each option of a program that its --help shows."""
    return {
        frozenset(action.option_strings)
        for one in parsers(parser)
        for action in one._actions
        if action.option_strings and action.help != argparse.SUPPRESS
    }


def typer_options() -> set[frozenset[str]]:
    """Return the spellings of each option of the installer."""
    found, left = set(), [typer.main.get_command(app)]
    while left:
        command = left.pop()
        left += list(getattr(command, "commands", {}).values())
        found |= {frozenset((*one.opts, *one.secondary_opts)) for one in command.params}
    return {spellings for spellings in found if any(name[0] == "-" for name in spellings)}


def typer_flags() -> set[str]:
    spelt = {name for spellings in typer_options() for name in spellings}
    return {name for name in spelt if name.startswith("--")} | {"--help"}


def undocumented(known: set[frozenset[str]], text: str) -> list[list[str]]:
    """Return the options of which a text has no spelling."""
    return sorted(
        sorted(spellings)
        for spellings in known
        if not spellings & COMMON_FLAGS
        and not any(re.search(rf"(?<![\w-]){name}(?![\w-])", text) for name in spellings)
    )


def serve_parser() -> argparse.ArgumentParser:
    [actions] = hsm_plugin.cli._parser()._subparsers._group_actions  # type: ignore[union-attr]
    assert isinstance(actions, argparse._SubParsersAction)
    found: argparse.ArgumentParser = actions.choices["serve"]
    return found


SERVE_OPTIONS = (
    "hsm_plugin/cli.py",
    "hsm_plugin/audit_options.py",
    "hsm_plugin/token_options.py",
)
"""Where the flags of `serve` take their defaults from the environment."""


def test_the_plugins_page_names_each_variable_that_it_reads_and_no_other() -> None:
    read = variables(*SERVE_OPTIONS, *config_modules("hsm_plugin"))
    assert first_cells("docs/hsm-plugin.md", "## Settings of `serve`") == read


def test_the_plugins_page_names_each_flag_of_serve_and_its_help_each_variable() -> None:
    section = page("docs/hsm-plugin.md").section("## Settings of `serve`")
    named = {flag for row in rows(section) for flag in _FLAG.findall(row[1])}
    assert named == flags(serve_parser(), hidden=False) - {"--help"}
    told = serve_parser().format_help()
    read = variables(*SERVE_OPTIONS) - {"LOG_FORMAT"}
    assert not [name for name in read if name not in told]


def test_the_bridges_page_its_help_and_its_reader_name_the_same_variables() -> None:
    read = variables(*config_modules("istiod_ca_bridge"))
    lines = re.findall(r"^  (\S+(?:, \S+)*)  ", istiod_ca_bridge.cli._ENVIRONMENT, re.MULTILINE)
    told = {name for line in lines for name in line.split(", ")}
    assert told == read
    assert first_cells("docs/ca-bridge.md", "## Settings") == read


def test_the_vault_clients_page_names_each_variable_that_it_reads_and_no_other() -> None:
    read = variables(*config_modules("vault_client")) | {"ON_EXIT"}
    causes = {f"ON_{cause.name}" for cause in Cause}
    section = page("docs/vault-client.md").section("## Settings")
    in_tables = {word for row in rows(section) for cell in row for word in code_words(cell)}
    named = {word.split("=")[0] for word in in_tables}
    assert {word for word in named if _NAME.fullmatch(word)} == read - causes
    assert "ON_<CAUSE>" in named
    states = {
        word
        for row in rows(page("docs/vault-client.md").section("## States"))
        for word in code_words(row[0])
    }
    assert states == {cause.value for cause in Cause}


def test_each_setting_of_the_installer_in_a_sentence_is_in_its_schema() -> None:
    schema = json_schema()["properties"]
    known = {
        f"{section}.{name}"
        for section, body in schema.items()
        for name in body.get("properties", {})
    }
    sections = "|".join(set(schema) - {"apiVersion"})
    pattern = re.compile(rf"(?:{sections})\.[a-z][A-Za-z]+")
    used = {
        found[0]
        for one in pages()
        if one.name != "docs/migration.md"  # names Helm values of ASM
        for word in code_words(one.prose())
        if (found := pattern.fullmatch(word.split(":")[0]))
    } - {"cluster.local", "hsm.hsmKEKID"}  # a trust domain; a value of ASM's chart
    assert used
    assert used <= known


def test_each_flag_in_a_sentence_is_of_one_of_our_programs() -> None:
    known = typer_flags() | set(FOREIGN_FLAGS)
    for make in (
        hsm_plugin.cli._parser,
        istiod_ca_bridge.cli._parser,
        vault_client.__main__._parser,
    ):
        known |= {flag for parser in parsers(make()) for flag in flags(parser)}
    for file in (bench.__main__.__file__, chaos.__main__.__file__):
        known |= set(re.findall(r'"(--[a-z-]+)"', Path(file).read_text()))
    unknown = {
        f"{one.name}: {flag}"
        for one in pages()
        for word in code_words(one.prose())
        for flag in _FLAG.findall(word)
        if flag not in known and not word.startswith(("pip ", "kubectl ", "istioctl ", "bao "))
    }
    assert not unknown


def programs() -> dict[str, tuple[set[frozenset[str]], str]]:
    """Return each program's options and the text of the pages that are its own."""
    plugin = ("docs/hsm-plugin.md", "docs/keys.md", "docs/being-seen.md")
    known = {
        "hsm-plugin": (options(hsm_plugin.cli._parser()), plugin),
        "vault-client": (options(vault_client.__main__._parser()), ("docs/vault-client.md",)),
        "istiod-ca-bridge": (options(istiod_ca_bridge.cli._parser()), ("docs/ca-bridge.md",)),
        "istio-hsm": (typer_options(), ("docs/installer.md",)),
    }
    return {
        name: (found, "\n".join(page(one).text for one in own))
        for name, (found, own) in known.items()
    }


@pytest.mark.parametrize("name", ["hsm-plugin", "vault-client", "istiod-ca-bridge", "istio-hsm"])
def test_each_option_that_a_programs_help_shows_is_in_its_pages(name: str) -> None:
    known, text = programs()[name]
    assert len(known) > 1
    assert undocumented(known, text) == []


def test_an_option_that_no_page_has_is_seen() -> None:
    known, text = programs()["istio-hsm"]
    invented = frozenset({"--invented", "-i"})
    assert undocumented(known | {invented}, text) == [["--invented", "-i"]]
    assert undocumented({frozenset({"--scale"})}, "give --scaled or --re--scale") == [["--scale"]]


def test_each_variable_that_the_installer_reads_is_in_its_page() -> None:
    read = variables("istio_hsm_installer/config.py")
    assert read
    assert read <= set(code_words(page("docs/installer.md").prose()))


def test_a_programs_own_page_names_flags_of_that_program() -> None:
    own = {
        "hsm-plugin": ("docs/hsm-plugin.md", "docs/keys.md"),
        "vault-client": ("docs/vault-client.md",),
        "istiod-ca-bridge": ("docs/ca-bridge.md",),
        "istio-hsm": ("docs/installer.md",),
    }
    foreign = {
        f"{name}: {flag}"
        for program, names in own.items()
        for name in names
        for word in code_words(page(name).prose())
        for flag in _FLAG.findall(word)
        if not word.startswith(("kubectl ", "istioctl ", "bao ", "python ", "pip "))
        and flag not in {*FOREIGN_FLAGS, *COMMON_FLAGS}
        and not any(flag in spellings for spellings in programs()[program][0])
    }
    assert foreign <= {
        f"docs/hsm-plugin.md: {flag}" for flag in ("--p11-pin", "--p11-slot", "--ca-id")
    }  # which the page says are refused


def commands(parser: argparse.ArgumentParser) -> set[str]:
    """Return the names of a program's commands."""
    return {
        name
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for name in action.choices
    }


def test_each_command_of_a_program_is_in_its_page() -> None:
    installer = set(getattr(typer.main.get_command(app), "commands", {}))
    shown = {
        "hsm-plugin": (
            commands(hsm_plugin.cli._parser()),
            ("docs/hsm-plugin.md", "docs/keys.md", "docs/being-seen.md"),
        ),
        "istiod-ca-bridge": (commands(istiod_ca_bridge.cli._parser()), ("docs/ca-bridge.md",)),
        "istio-hsm": (installer, ("docs/installer.md",)),
        "vault-client": ({"healthcheck", "--once"}, ("docs/vault-client.md",)),
    }
    missing = []
    for program, (names, where) in shown.items():
        text = "\n".join(page(name).text for name in where)
        missing += [
            f"{program} {name}"
            for name in names
            if f"{program} {name}" not in text and f"`{name}`" not in text
        ]
    assert not missing


@pytest.mark.parametrize(
    "broken",
    [
        lambda text: text.replace("| `CA_LISTEN`", "| `CA_LISTENS`"),
        lambda text: re.sub(r"(?m)^\| `TRUST_DOMAIN` .*\n", "", text),
    ],
)
def test_a_variable_that_is_wrong_or_left_out_is_seen(
    broken: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = page("docs/ca-bridge.md").text
    assert broken(text) != text
    original = Path.read_text
    monkeypatch.setattr(
        Path,
        "read_text",
        lambda path: broken(original(path)) if path.name == "ca-bridge.md" else original(path),
    )
    with pytest.raises(AssertionError):
        test_the_bridges_page_its_help_and_its_reader_name_the_same_variables()
