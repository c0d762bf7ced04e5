"""What a person or a program reads: text or JSON on stdout, two-line errors on stderr."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum

from rich.console import Console
from rich.table import Table
from rich.text import Text as RichText

from istio_hsm_installer.engine import Outcome, Result, Results
from istio_hsm_installer.errors import InstallerError, ManyErrors

_MARKS = {
    Outcome.UNCHANGED: ("=", "dim"),
    Outcome.PENDING: ("~", "yellow"),
    Outcome.CHANGED: ("+", "green"),
    Outcome.MANUAL: ("!", "bold yellow"),
    Outcome.UNDONE: ("-", "green"),
    Outcome.KEPT: ("=", "yellow"),
}
_DIFF_STYLES = {"+": "green", "-": "red", "~": "yellow", "@": "dim"}


class Output(StrEnum):
    """How results are written."""

    TEXT = "text"
    JSON = "json"


def show(output: Output, result: Mapping[str, str]) -> None:
    """Write named values."""
    if output is Output.JSON:
        as_json(result)
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in result.items():
        table.add_row(_text(name.replace("_", " "), style="bold"), _text(value))
    _console().print(table)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write rows below heads; nothing without rows."""
    if not rows:
        return
    made = Table(*heads, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        made.add_row(*map(_text, row))
    _console().print(made)


def as_json(document: object) -> None:
    """Write one JSON document on one line."""
    sys.stdout.write(json.dumps(document) + "\n")


def say(text: str, style: str = "") -> None:
    """Write one line of text, as it is."""
    _console().print(_text(text, style=style))


def tell(text: str) -> None:
    """Write one line of progress to stderr."""
    Console(stderr=True, soft_wrap=True, highlight=False).print(_text(text, style="dim"))


def step(result: Result) -> None:
    """Write a step and what it changes."""
    mark, style = _MARKS[result.outcome]
    line = RichText.assemble((f"{mark} {result.step}", style), (f"  {result.title}", "dim"))
    console = _console()
    console.print(line)
    for change in result.changes:
        console.print(_text(f"    {change.action} {change.what}"))
        for entry in change.diff:
            console.print(_text(f"      {entry}", style=_DIFF_STYLES.get(entry[:1], "")))
        for entry in change.note.splitlines():
            console.print(_text(f"      {entry}", style="cyan"))
    if result.outcome is not Outcome.MANUAL:
        for note in result.notes:
            console.print(_text(f"    {note}"))


def step_document(result: Result) -> Mapping[str, object]:
    """Return a step as a JSON document."""
    return {
        "step": result.step,
        "title": result.title,
        "outcome": result.outcome.value,
        "changes": [
            {
                "action": change.action.value,
                "what": change.what,
                "diff": list(change.diff),
                "note": change.note,
            }
            for change in result.changes
        ],
        "notes": list(result.notes),
    }


def fail(error: InstallerError, output: Output = Output.TEXT) -> None:
    """Write an error as its cause and its hint; of several, each so. In JSON on stdout, too."""
    found = [*_each(error)]
    if output is Output.JSON:
        as_json(
            {
                "errors": [
                    {"code": entry.kind, "message": str(entry), "hint": entry.hint}
                    for entry in found
                ]
            }
        )
    for entry in found:
        fail_with(str(entry), entry.hint)


def fail_with(message: str, hint: str) -> None:
    """Write a cause and a hint."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(RichText.assemble(("error:", "bold red"), " ", _text(message)))
    if hint:
        console.print(RichText.assemble(("hint:", "bold yellow"), " ", _text(hint)))


def counted(results: Results) -> str:
    """Return such as `2 changed, 14 unchanged`."""
    counts = dict.fromkeys(Outcome, 0)
    for result in results:
        counts[result.outcome] += 1
    return ", ".join(f"{number} {outcome}" for outcome, number in counts.items() if number)


def _each(error: InstallerError) -> Iterator[InstallerError]:
    if isinstance(error, ManyErrors):
        for entry in error.errors:
            yield from _each(entry)
    else:
        yield error


def _text(text: str, style: str = "") -> RichText:
    """Return the text, in which nothing moves a cursor or hides what follows: it may be hostile."""
    plain = "".join(char if char.isprintable() or char in "\n\t" else "?" for char in text)
    return RichText(plain, style=style)


def _console() -> Console:
    return Console(soft_wrap=True, highlight=False)
