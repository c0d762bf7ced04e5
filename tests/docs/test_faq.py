"""Each message that docs/faq.md quotes is one that a program can say."""

import ast
import re
from collections.abc import Iterator
from functools import cache

import pytest

from tests.docs.pages import REPOSITORY, code_words, page, pages, rows

_EVENT = re.compile(r"[a-z][a-z_]+\.[a-z_]+")
_NO_EVENTS = (
    *(".pem", ".json", ".yaml", ".crt", ".key", ".log", ".py"),
    *("istio.mode", "istio.namespace", "istio.revision", "hsm.socket", "vault.audience"),
    *("cluster.local", "base.name", "name.namespace", "status.certificate"),
)
"""Words of that form which are files, settings and fields."""

_PACKAGES = {
    "## hsm-plugin": "hsm_plugin",
    "## vault-client": "vault_client",
    "## istiod-ca-bridge": "istiod_ca_bridge",
    "## istio-hsm": "istio_hsm_installer",
}


@cache
def sayings(package: str) -> frozenset[str]:
    """Return the texts of a package's source, each value in them as `…`."""
    found = set()
    for path in (REPOSITORY / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
            elif isinstance(node, ast.JoinedStr):
                found.add("".join(_pieces(node)))
    return frozenset(found)


def _pieces(node: ast.JoinedStr) -> Iterator[str]:
    for value in node.values:
        yield str(value.value) if isinstance(value, ast.Constant) else "…"


def is_said(package: str, message: str) -> bool:
    return any(message in saying for saying in sayings(package))


def any_of(event: str) -> str:
    """Return the event as it stands where its first part is a value."""
    return f"….{event.partition('.')[2]}"


def messages(heading: str) -> list[str]:
    return [
        word for row in rows(page("docs/faq.md").section(heading)) for word in code_words(row[0])
    ]


@pytest.mark.parametrize(("heading", "package"), _PACKAGES.items())
def test_each_quoted_message_is_in_the_programs_source(heading: str, package: str) -> None:
    quoted = messages(heading)
    assert len(quoted) > 5
    assert not [message for message in quoted if not is_said(package, message)]


def test_each_event_that_a_page_names_is_logged_by_a_program() -> None:
    logged = {saying for package in _PACKAGES.values() for saying in sayings(package)}
    named = {
        (one.name, word)
        for one in pages()
        for word in code_words(one.prose())
        if _EVENT.fullmatch(word) and not word.endswith(_NO_EVENTS)
    }
    assert len(named) > 10
    unknown = [(name, event) for name, event in named if not {event, any_of(event)} & logged]
    assert not unknown


def test_a_message_that_nobody_says_is_found() -> None:
    assert not is_said("hsm_plugin", "the token's user PIN is lost")
    assert not is_said("vault_client", "the token's user PIN is locked")  # another program's
