"""README.fr.md is README.md in French: the same sections, commands, programs and links."""

import re

from tests.docs.pages import Page, code_words, page, rows

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_LANGUAGES = {"README.md", "README.fr.md"}


def ranks(one: Page) -> list[int]:
    return [len(heading) - len(heading.lstrip("#")) for heading in one.headings()]


def links(one: Page) -> list[str]:
    return [target for target in _LINK.findall(one.prose()) if target not in _LANGUAGES]


def edges(one: Page) -> int:
    return sum(block.text.count("-->") + block.text.count(".->") for block in one.blocks())


def differences(english: Page, french: Page) -> list[str]:
    """Return in what the two are not the same page."""
    alike = {
        "headings": ranks(english) == ranks(french),
        "commands": [b.text for b in english.blocks() if b.language == "sh"]
        == [b.text for b in french.blocks() if b.language == "sh"],
        "picture": edges(english) == edges(french),
        "tables": [len(row) for row in rows(english.prose())]
        == [len(row) for row in rows(french.prose())],
        "links": links(english) == links(french),
        "names in code": sorted(code_words(english.prose())) == sorted(code_words(french.prose())),
    }
    return [what for what, is_alike in alike.items() if not is_alike]


def test_the_french_readme_has_the_same_sections_commands_and_links() -> None:
    assert not differences(page("README.md"), page("README.fr.md"))


def test_a_change_of_one_readme_alone_is_seen() -> None:
    english = page("README.md")
    for old, new, what in (
        ("## Where it stands", "### Where it stands", "headings"),
        ("make demo ", "make all ", "commands"),
        ("docs/faq.md", "docs/luna.md", "links"),
    ):
        changed = Page("README.md", english.text.replace(old, new))
        assert what in differences(changed, page("README.fr.md"))


def test_each_readme_names_the_other() -> None:
    assert "](README.fr.md)" in page("README.md").text
    assert "](README.md)" in page("README.fr.md").text
