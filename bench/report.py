"""The tables of docs/performance.md and docs/tuning.md, written from what `python -m bench` found.

`python -m bench.report RESULTS-JSON [RESULTS-JSON...] PAGE.md [PAGE.md...]`: a section is taken
from the last file that has it. A table stands between two comments that name it.
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
    "sessions": plugin_tables.sessions,
}
"""By the name in the comments around them."""


def main(arguments: Sequence[str]) -> int:
    """Return the exit code."""
    paths = [Path(argument) for argument in arguments]
    results: dict[str, Any] = {}
    for path in paths:
        if path.suffix == ".json":
            results |= json.loads(path.read_text())
    for path in paths:
        if path.suffix == ".md":
            path.write_text(_written(path.read_text(), results))
    return 0


def _written(page: str, results: Mapping[str, Any]) -> str:
    for name, tables in _TABLES.items():
        lines = list(tables(results))
        before, begin, rest = page.partition(f"<!-- {name}: begin -->\n")
        _, end, after = rest.partition(f"<!-- {name}: end -->\n")
        if lines and end:
            page = "".join((before, begin, "\n", "\n".join(lines), "\n", end, after))
    return page


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
