"""Shell text of a page, split into statements and simple commands.

Not a shell: it knows what the pages use, and refuses what it does not know.
"""

import re
import shlex
import subprocess
from dataclasses import dataclass

from tests.docs.pages import Block

_SEPARATORS = {";", "&", "&&", "||", "|", "(", ")", ";;", "|&"}
_REDIRECTIONS = {">", "<", ">>", ">&", "<&", "<<<"}
_KEYWORDS = {"do", "then", "else", "if", "while", "until", "!", "{"}
_ENDS = {"done", "fi", "}"}
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
_SUBSTITUTION = re.compile(r"\$\(([^()]*)\)")
_EXIT = re.compile(r"#.*\bexit (\d+)\b")


class ShellTextError(ValueError):
    """The text is no shell, or more shell than is understood here."""


@dataclass(frozen=True, slots=True)
class Statement:
    """A line of a block, or as many as bash needs to have a whole one."""

    page: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"

    def exit_codes(self) -> set[int]:
        """Return how it may end: with 0, or as its own comment says."""
        return {0, *(int(code) for code in _EXIT.findall(self.text))}

    def commands(self) -> list[list[str]]:
        """Return the words of each simple command, command substitutions included."""
        inner = [
            Statement(self.page, self.line, text).commands()
            for text in _SUBSTITUTION.findall(self.text)
        ]
        found = [words for commands in inner for words in commands]
        for words in _split(self._tokens()):
            command = _bare(words)
            if command:
                found.append(command)
        return found

    def _tokens(self) -> list[str]:
        text = _SUBSTITUTION.sub("00", self.text.replace("\\\n", " "))
        if "<<" in text or "`" in text:
            raise ShellTextError(f"{self}: here-documents and backticks are not understood")
        lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        tokens: list[str] = []
        for line in text.splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            tokens += [*lexer, ";"]
        return tokens


def statements(block: Block) -> list[Statement]:
    """Return the block's statements; ShellTextError when bash cannot read it."""
    found: list[Statement] = []
    gathered: list[str] = []
    for offset, line in enumerate(block.text.splitlines()):
        if not gathered and (not line.strip() or line.lstrip().startswith("#")):
            continue
        gathered.append(line)
        text = "\n".join(gathered)
        if not text.endswith("\\") and _is_whole(text):
            first = block.line + offset - len(gathered) + 1
            found.append(Statement(block.page, first, text))
            gathered = []
    if gathered:
        raise ShellTextError(f"{block.page}:{block.line}: bash does not read it:\n{block.text}")
    return found


def _is_whole(text: str) -> bool:
    read = subprocess.run(["bash", "-n", "-c", text], capture_output=True, check=False)
    return read.returncode == 0 and not read.stderr


def _split(tokens: list[str]) -> list[list[str]]:
    found: list[list[str]] = [[]]
    for token in tokens:
        if token in _SEPARATORS:
            found.append([])
        else:
            found[-1].append(token)
    return found


def _bare(words: list[str]) -> list[str]:
    """Return a command without keywords, assignments and redirections."""
    kept: list[str] = []
    rest = iter(words)
    for word in rest:
        if word in _REDIRECTIONS:
            if kept and kept[-1] == "2":
                kept.pop()
            next(rest, None)
        elif kept or not (word in _KEYWORDS | _ENDS or _ASSIGNMENT.match(word)):
            kept.append(word)
    return [] if kept[:1] == ["for"] else kept
