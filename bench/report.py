"""The tables of docs/performance.md, written anew from what `python -m bench` found.

`python -m bench.report RESULTS-JSON [RESULTS-JSON...] docs/performance.md`: a section is taken
from the last file that has it.
"""

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import bridge_tables, plugin_tables

_TABLES: Mapping[str, Callable[[Mapping[str, Any]], Iterable[str]]] = {
    "plugin": plugin_tables.tables,
    "bridge": bridge_tables.tables,
}
"""By the name in the comments that the page has around them."""


def main(arguments: Sequence[str]) -> int:
    """Return the exit code."""
    *files, page = map(Path, arguments)
    results: dict[str, Any] = {}
    for file in files:
        results |= json.loads(file.read_text())
    text = page.read_text()
    for name, tables in _TABLES.items():
        lines = list(tables(results))
        if lines:
            text = _replaced(text, name, "\n".join(lines))
    page.write_text(text)
    return 0


def _replaced(text: str, name: str, tables: str) -> str:
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"the page has no comments around its tables of the {name}")
    return f"{before}{begin}\n{tables}\n{end}{after}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
