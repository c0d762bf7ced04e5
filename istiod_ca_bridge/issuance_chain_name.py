"""Which issuance log, of those that the workers of one bridge write, a file is part of."""

import re
from pathlib import Path

_WORKER = ".worker-"
_NAME = re.compile(r".*\.worker-([0-9]{1,2})(?:\.[0-9]{12})?")
"""Also of a file that was put aside under the number of its first line."""


def log_of_worker(path: Path, number: int) -> Path:
    """Return a worker's own log; the first one goes on with that of a single process."""
    return path if number == 1 else path.with_name(f"{path.name}{_WORKER}{number}")


def worker_of(path: Path) -> int:
    """Return the worker whose log a file is part of, by its name."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else 1
