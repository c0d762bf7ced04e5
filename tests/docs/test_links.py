"""Links between the pages lead somewhere."""

import re

import pytest

from tests.docs.pages import REPOSITORY, page, pages

_LINK = re.compile(r"\]\(([^)\s]+)\)")


def slug(heading: str) -> str:
    """Return the anchor that forges make of a heading."""
    text = heading.lstrip("#").strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def broken_links(name: str) -> list[str]:
    folder = (REPOSITORY / name).parent
    broken = []
    for target in _LINK.findall(page(name).prose()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (folder / path).resolve() if path else REPOSITORY / name
        if not file.exists():
            broken.append(target)
        elif anchor and file.suffix == ".md":
            there = page(str(file.relative_to(REPOSITORY)))
            if anchor not in {slug(heading) for heading in there.headings()}:
                broken.append(target)
    return broken


@pytest.mark.parametrize(
    "name",
    [one.name for one in pages()]
    + [str(path.relative_to(REPOSITORY)) for path in REPOSITORY.glob("docs/adr/*.md")],
)
def test_every_link_of_the_page_leads_somewhere(name: str) -> None:
    assert not broken_links(name)


def test_every_page_of_docs_can_be_reached_from_the_readme() -> None:
    reached, left = set(), ["README.md"]
    while left:
        name = left.pop()
        if name in reached or not name.endswith(".md"):
            continue
        reached.add(name)
        folder = (REPOSITORY / name).parent
        for target in _LINK.findall(page(name).prose()):
            path = (folder / target.partition("#")[0]).resolve()
            if path.is_file():
                left.append(str(path.relative_to(REPOSITORY)))
    assert {one.name for one in pages()} <= reached


def test_a_heading_becomes_the_anchor_of_a_forge() -> None:
    assert slug("## The root's key is lost") == "the-roots-key-is-lost"
    assert slug("## 9. The ceremony") == "9-the-ceremony"


def test_no_message_of_a_sequence_diagram_holds_what_ends_it() -> None:
    lines = [
        line
        for one in pages()
        for block in one.blocks()
        if block.language == "mermaid" and block.text.startswith("sequenceDiagram")
        for line in block.text.splitlines()
    ]
    assert lines
    assert not [line for line in lines if ";" in line or "#" in line]
