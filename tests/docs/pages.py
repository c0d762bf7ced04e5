"""The pages of the documentation: fenced blocks, tables and headings, with their lines."""

import re
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]

_FENCE = re.compile(r"(?P<indent> *)(?P<marks>`{3,}|~{3,})(?P<info>.*)")
_CELL = re.compile(r"(?<!\\)\|")
_CODE = re.compile(r"`([^`]+)`")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block."""

    page: str
    line: int
    """Of its first line of text, counted from 1."""
    language: str
    runs: frozenset[str]
    """Names of the runs that it is part of: what its fence says after `sh`."""
    text: str
    heading: str = ""
    """The one that it stands under."""


@dataclass(frozen=True, slots=True)
class Page:
    """One Markdown file."""

    name: str
    """Its path from the root of the repository."""
    text: str

    def blocks(self) -> list[Block]:
        """Return the fenced blocks, those of list items without their indent."""
        found: list[Block] = []
        lines = self.text.splitlines()
        at, heading = 0, ""
        while at < len(lines):
            opened = _FENCE.fullmatch(lines[at])
            at += 1
            if opened is None:
                heading = lines[at - 1] if lines[at - 1].startswith("#") else heading
                continue
            first, inner = at, []
            while at < len(lines) and lines[at].strip() != opened["marks"]:
                inner.append(lines[at].removeprefix(opened["indent"]))
                at += 1
            assert at < len(lines), f"{self.name}:{first} opens a fence and never closes it"
            at += 1
            language, *more = opened["info"].split() or [""]
            text = "".join(f"{line}\n" for line in inner)
            found.append(Block(self.name, first + 1, language, frozenset(more), text, heading))
        return found

    def prose(self) -> str:
        """Return the text without its fenced blocks."""
        kept, inside = [], ""
        for line in self.text.splitlines():
            fence = _FENCE.fullmatch(line)
            if fence and not inside:
                inside = fence["marks"]
            elif inside and line.strip() == inside:
                inside = ""
            elif not inside:
                kept.append(line)
        return "\n".join(kept)

    def headings(self) -> list[str]:
        return [line for line in self.prose().splitlines() if line.startswith("#")]

    def section(self, heading: str) -> str:
        """Return what stands under a heading, up to the next of its rank or above."""
        rank = len(heading) - len(heading.lstrip("#"))
        lines = self.text.splitlines()
        assert heading in lines, f"{self.name} has no heading {heading!r}"
        start = lines.index(heading) + 1
        ends = (
            index
            for index, line in enumerate(lines[start:], start)
            if re.match(rf"#{{1,{rank}}} ", line)
        )
        return "\n".join(lines[start : next(ends, len(lines))])


def pages() -> list[Page]:
    """Return every page that operators read."""
    paths = [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md")]
    return [page(str(path.relative_to(REPOSITORY))) for path in sorted(paths)]


def page(name: str) -> Page:
    return Page(name, (REPOSITORY / name).read_text())


def blocks_of(name: str, run: str) -> list[Block]:
    """Return the blocks of a page that are part of a run."""
    return [block for block in page(name).blocks() if run in block.runs]


def rows(text: str) -> list[list[str]]:
    """Return the cells of the tables' rows, without heads and rules."""
    found = []
    lines = text.splitlines()
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        is_head_or_rule = re.match(r"\|[-| :]+$", after) or re.match(r"\|[-| :]+$", line)
        if line.startswith("|") and not is_head_or_rule:
            found.append([cell.strip() for cell in _CELL.split(line.strip("|"))])
    return found


def code_words(text: str) -> list[str]:
    """Return what stands between backticks."""
    return _CODE.findall(text)
