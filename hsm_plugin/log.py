"""Log lines on stderr: text for people and grep, JSON for collectors.

The reference plugin's lines keep their words, so that the same grep finds them.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

LOGGER = logging.getLogger("hsm_plugin")

_RESERVED = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def setup(*, as_json: bool, level: str = "INFO") -> None:
    """Send this package's log to stderr, one line an event."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if as_json else _TextFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)


def event(name: str, message: str, *, level: int = logging.INFO, **fields: object) -> None:
    """Log one event: a stable dotted name, words for people, and fields."""
    LOGGER.log(level, message, extra={"event": name, **fields})


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _RESERVED}


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(
            f"{key}={json.dumps(value, default=str)}" for key, value in _fields(record).items()
        )
        message = "".join(
            char if char.isprintable() else char.encode("unicode_escape").decode()
            for char in record.getMessage()
        )
        return f"{_time(record)} {record.levelname} {message} {fields}".rstrip()


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _time(record),
            "level": record.levelname,
            "message": record.getMessage(),
            **_fields(record),
        }
        return json.dumps(line, default=str)
