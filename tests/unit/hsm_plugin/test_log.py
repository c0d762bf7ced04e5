"""One event is one line, whatever its words hold."""

import json
import logging
from collections.abc import Callable

import pytest

from hsm_plugin import log
from hsm_plugin.log import _JsonFormatter, _TextFormatter

_HOSTILE = [
    "one\ntwo",
    "one\r\ntwo",
    "one\rtwo",
    "one\x1b[2Ktwo",
    "one\x85two",
    "one\u2028two",
    "one\x00two",
]


def record(message: str, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("hsm_plugin", logging.INFO, "file", 1, message, None, None)
    made.created = 1_700_000_000.5
    vars(made).update(fields)
    return made


def test_text_is_time_level_words_and_fields() -> None:
    line = _TextFormatter().format(record("Serving", event="server.serving", count=3))
    assert line == '2023-11-14T22:13:20.500Z INFO Serving event="server.serving" count=3'


def test_json_is_one_object_with_the_fields_at_its_top() -> None:
    line = json.loads(_JsonFormatter().format(record("Serving", event="server.serving", count=3)))
    assert line == {
        "time": "2023-11-14T22:13:20.500Z",
        "level": "INFO",
        "message": "Serving",
        "event": "server.serving",
        "count": 3,
    }


@pytest.mark.parametrize("formatter", [_TextFormatter, _JsonFormatter])
@pytest.mark.parametrize("hostile", _HOSTILE)
def test_words_cannot_add_a_line_or_move_the_cursor(
    formatter: Callable[[], logging.Formatter], hostile: str
) -> None:
    line = formatter().format(record(f"refused {hostile}", event="rpc.refused"))
    assert line.isprintable()
    assert "one" in line
    assert "two" in line


@pytest.mark.parametrize("formatter", [_TextFormatter, _JsonFormatter])
@pytest.mark.parametrize("hostile", _HOSTILE)
def test_a_field_cannot_add_a_line_or_move_the_cursor(
    formatter: Callable[[], logging.Formatter], hostile: str
) -> None:
    line = formatter().format(record("refused", event="rpc.refused", hint=hostile))
    assert line.isprintable()


def test_words_of_other_scripts_stay_readable_in_text() -> None:
    assert "Schlüssel 鍵" in _TextFormatter().format(record("Schlüssel 鍵"))


def test_a_field_that_json_cannot_write_is_written_as_its_text() -> None:
    for formatter in (_TextFormatter(), _JsonFormatter()):
        assert "1+2j" in formatter.format(record("odd", value=1 + 2j))


def test_a_quote_in_a_field_does_not_end_it() -> None:
    line = _TextFormatter().format(record("refused", hint='x" event="forged'))
    assert 'hint="x\\" event=\\"forged"' in line


def test_a_traceback_is_not_written() -> None:
    try:
        raise ValueError("canary")  # noqa: TRY301 - a traceback is wanted
    except ValueError as error:
        made = record("failed")
        made.exc_info = (type(error), error, error.__traceback__)
    for formatter in (_TextFormatter(), _JsonFormatter()):
        assert "canary" not in formatter.format(made)


def test_an_event_carries_its_name_level_and_fields(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="hsm_plugin"):
        log.event("token.lost", "The token is lost", level=logging.WARNING, slot=7)
    [made] = caplog.records
    assert (made.levelno, made.getMessage()) == (logging.WARNING, "The token is lost")
    assert vars(made)["event"] == "token.lost"
    assert vars(made)["slot"] == 7
