"""Events, one line each: `key=value` text or JSON.

Only plain values go in, and what an unexpected exception says stays out: its text could quote a
secret, so its type and place in the code must do.
"""

import json
import logging
import sys
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime

from vault_client.settings import LogConfig

Field = str | int | float | bool | None
_LOGGER = logging.getLogger("vault_client")


class Log:
    """Writes events, with repeats of the same bad news thinned out. `clock` is monotonic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: dict[str, tuple[str, float]] = {}

    def debug(self, event: str, **fields: Field) -> None:
        """Write an event that only matters when looking closely."""
        self._write(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Field) -> None:
        """Write an event of normal life."""
        self._write(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Field) -> None:
        """Write an event that somebody should look at."""
        self._write(logging.WARNING, event, fields)

    def thinned(self, event: str, *, same: str, every_seconds: float, **fields: Field) -> None:
        """Write a warning, or at debug level if the `same` one was written a short while ago."""
        said, when = self._last.get(event, ("", float("-inf")))
        if said == same and self._clock() - when < every_seconds:
            self._write(logging.DEBUG, event, fields)
            return
        self._last[event] = (same, self._clock())
        self._write(logging.WARNING, event, fields)

    def unexpected(self, event: str, error: BaseException) -> None:
        """Write an error that nobody foresaw: its type and where, never its text."""
        frames = traceback.extract_tb(error.__traceback__)[-5:]
        where = " < ".join(f"{f.filename.rpartition('/')[2]}:{f.lineno}" for f in reversed(frames))
        self._write(logging.ERROR, event, {"type": type(error).__name__, "where": where})

    def _write(self, level: int, event: str, fields: dict[str, Field]) -> None:
        _LOGGER.log(level, event, extra={"fields": fields})


def configure(config: LogConfig) -> None:
    """Send our events to stderr; the libraries' own logs, which may quote bodies, go nowhere."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if config.form == "json" else _Text())
    _LOGGER.handlers = [handler]
    _LOGGER.propagate = False
    _LOGGER.setLevel(config.level)
    logging.getLogger().handlers = [logging.NullHandler()]


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        parts = [_time(record), record.levelname.lower(), record.getMessage()]
        parts += [f"{name}={_quoted(value)}" for name, value in _fields(record).items()]
        return " ".join(parts)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        head = {"time": _time(record), "level": record.levelname.lower()}
        return json.dumps(head | {"event": record.getMessage()} | _fields(record))


def _fields(record: logging.LogRecord) -> dict[str, Field]:
    fields: dict[str, Field] = getattr(record, "fields", {})
    return {name: value for name, value in fields.items() if value is not None}


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def _quoted(value: Field) -> str:
    text = str(value)
    return (
        text if text and all(c.isprintable() and c not in ' "=' for c in text) else json.dumps(text)
    )
