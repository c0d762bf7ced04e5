"""Every security finding that is excused in the code is of a harmless kind, and says why."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOT = Path(__file__).parent.parent
_SHIPPED = ("hsm_plugin", "vault_client", "istiod_ca_bridge", "istio_hsm_installer", "images")
_ALL = (*_SHIPPED, "bench", "chaos", "demo", "proto", "scripts", "tests")
_NOQA = re.compile(r"#\s*noqa(?::\s*(?P<codes>[A-Z]+[0-9]+(?:,\s*[A-Z]+[0-9]+)*))?(?P<reason>.*)")
_SECURITY = re.compile(r"S[0-9]{3}")
_HARMLESS = {
    "S101": "an assert that tells mypy what holds anyway; nothing depends on it",
    "S104": "an address that is compared, not bound",
    "S105": "a word such as token, or the name of a Secret",
    "S108": "a folder in memory in which mkdtemp makes one of mode 0700, or the guide's path",
    "S311": "chance that spreads load and guards nothing",
}
"""What may be excused in code that ships; never a shell, pickle, weak hash or unverified TLS."""


def exceptions(text: str) -> Iterator[tuple[int, set[str], str]]:
    """Yield line, codes and reason of each exception in a source text."""
    for number, line in enumerate(text.splitlines(), 1):
        if match := _NOQA.search(line):
            codes = set(re.split(r",\s*", match["codes"])) if match["codes"] else set()
            yield number, codes, match["reason"].strip(" -")


def faults(text: str, *, ships: bool) -> list[str]:
    """Return what is wrong with the exceptions of a file."""
    found = []
    for number, codes, reason in exceptions(text):
        security = {code for code in codes if _SECURITY.fullmatch(code)}
        if not codes:
            found.append(f"{number}: it excuses everything")
        elif security and len(reason) < 3:
            found.append(f"{number}: {', '.join(sorted(security))} without a reason")
        elif ships and security - set(_HARMLESS):
            found.append(
                f"{number}: {', '.join(sorted(security - set(_HARMLESS)))} is not harmless"
            )
    return found


def test_every_exception_has_its_reason() -> None:
    wrong = {}
    for folder in _ALL:
        for path in sorted((_ROOT / folder).rglob("*.py")):
            is_generated = "_pb2" in path.name
            if path != Path(__file__) and not is_generated:
                text = path.read_text()
                if found := faults(text, ships=folder in _SHIPPED):
                    wrong[str(path.relative_to(_ROOT))] = found
    assert wrong == {}


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("x = 1  # noqa", "excuses everything"),
        ("x = 1  # noqa: S105", "without a reason"),
        ("x = 1  # noqa: E501, S105", "without a reason"),
        ("verify = False  # noqa: S501 - a test server", "not harmless"),
        ("run(x, shell=True)  # noqa: S602 - it is fine", "not harmless"),
    ],
)
def test_an_exception_without_one_is_seen(line: str, fault: str) -> None:
    (found,) = faults(line, ships=True)
    assert fault in found


def test_the_security_rules_are_on_and_few_are_off_everywhere() -> None:
    lint = tomllib.loads((_ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    assert lint["select"] == ["ALL"]
    assert {code for code in lint["ignore"] if _SECURITY.fullmatch(code)} == {"S603", "S607"}
    for pattern, codes in lint["per-file-ignores"].items():
        security = {code for code in codes if code == "S" or _SECURITY.fullmatch(code)}
        allowed = {"S101", "S105", "S106", "S505"} if pattern == "tests/**" else set()
        assert security <= allowed, pattern


def test_no_program_that_ships_starts_a_shell() -> None:
    shell = re.compile(r"shell\s*=\s*True|os\.system|os\.popen|create_subprocess_shell")
    using = [
        str(path.relative_to(_ROOT))
        for folder in _SHIPPED
        for path in sorted((_ROOT / folder).rglob("*.py"))
        if shell.search(path.read_text())
    ]
    assert using == []
