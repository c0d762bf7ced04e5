"""Each threat of SECURITY.md names tests, and each of these exists."""

import ast
import re
from pathlib import Path

import pytest

_ROOT = Path(__file__).parent.parent
_NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def rows(page: str) -> dict[str, list[tuple[str, str]]]:
    """Return the tests that each threat names."""
    table = page.partition("| threat | answer | held by |\n|---|---|---|\n")[2].partition("\n\n")[0]
    lines = [line.strip("| ").rsplit(" | ", 2) for line in table.splitlines()]
    return {threat: _NAMED.findall(held_by) for threat, _, held_by in lines}


def missing(found: dict[str, list[tuple[str, str]]]) -> set[str]:
    """Return the threats without a test, and the tests that are not there."""
    return {threat for threat, tests in found.items() if not tests} | {
        f"{path}::{name}"
        for tests in found.values()
        for path, name in tests
        if name not in functions(_ROOT / path)
    }


def functions(path: Path) -> set[str]:
    """Return the test functions of a file; none when there is no file."""
    if not path.is_file():
        return set()
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, kinds)}


def test_every_threat_is_held_by_tests_that_exist() -> None:
    found = rows((_ROOT / "SECURITY.md").read_text())
    assert len(found) >= 15
    assert missing(found) == set()


@pytest.mark.parametrize(
    "held_by",
    ["nothing", "`tests/test_gone.py::test_x`", "`tests/test_security_page.py::test_gone`"],
)
def test_a_threat_that_nothing_holds_is_seen(held_by: str) -> None:
    page = f"| threat | answer | held by |\n|---|---|---|\n| a | b | {held_by} |\n\nmore"
    assert len(missing(rows(page))) == 1
