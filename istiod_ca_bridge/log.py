"""Structured, event-named lines on stderr: key=value text, or one JSON object a line."""

import json
import logging
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Literal

_PLAIN = re.compile(r"[A-Za-z0-9._:/@+,=-]{1,500}")
_MAX_VALUE = 1000

Value = str | int | float | bool | datetime


class EventLog:
    """Names events and their facts; a value is cut and quoted, never interpreted."""

    def __init__(self, logger: logging.Logger, always: Mapping[str, Value] | None = None) -> None:
        self._logger = logger
        self._always = dict(always or {})

    def debug(self, event: str, **facts: Value) -> None:
        """Log what only helps to find a fault."""
        self._log(logging.DEBUG, event, facts)

    def info(self, event: str, **facts: Value) -> None:
        """Log what went as it should."""
        self._log(logging.INFO, event, facts)

    def warning(self, event: str, **facts: Value) -> None:
        """Log what someone should look at."""
        self._log(logging.WARNING, event, facts)

    def error(self, event: str, **facts: Value) -> None:
        """Log what stops the work."""
        self._log(logging.ERROR, event, facts)

    def _log(self, level: int, event: str, facts: dict[str, Value]) -> None:
        if self._logger.isEnabledFor(level):
            # Not `log`, which looks for the caller's file and line: no event tells it.
            self._logger.handle(
                self._logger.makeRecord(
                    self._logger.name,
                    level,
                    "",
                    0,
                    event,
                    (),
                    None,
                    extra={"facts": facts | self._always},
                )
            )


def event_log(style: Literal["text", "json"], worker: int = 0) -> EventLog:
    """Return the process's log, set up to write to stderr; each line names its worker, if any."""
    # No line tells of them, and each costs every line (logging's own notes on optimization).
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if style == "json" else _TextFormatter())
    logger = logging.getLogger("istiod_ca_bridge")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO)
    return EventLog(logger, {"worker": worker} if worker else None)


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        facts = "".join(f" {key}={_quoted(value)}" for key, value in _facts(record).items())
        return f"{_moment(record)} {record.levelname.lower()} {record.getMessage()}{facts}"


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        head = {
            "time": _moment(record),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        return json.dumps(head | {key: _bounded(value) for key, value in _facts(record).items()})


def _facts(record: logging.LogRecord) -> dict[str, Value]:
    facts: dict[str, Value] = getattr(record, "facts", {})
    return facts


def _moment(record: logging.LogRecord) -> str:
    seconds = int(record.created)
    return f"{_second(seconds)}.{int((record.created - seconds) * 1000):03d}Z"


@lru_cache(1)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%FT%T")


def _bounded(value: Value) -> str | int | float | bool:
    if isinstance(value, datetime):
        return f"{value.isoformat(timespec='seconds')[:19]}Z"
    return value[:_MAX_VALUE] if isinstance(value, str) else value


def _quoted(value: Value) -> str:
    if type(value) is str and _PLAIN.fullmatch(value):  # as nearly all are
        return value
    bounded = _bounded(value)
    if isinstance(bounded, bool):
        return "true" if bounded else "false"
    text = str(bounded)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)
