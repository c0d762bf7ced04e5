"""Events: one line each, readable by people and by programs, without what must not be said."""

import json
import logging

import pytest

from vault_client.logs import Log, configure
from vault_client.settings import LogConfig


def test_an_event_is_one_line_of_text(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogConfig("text", "INFO"))
    Log().info("set.published", generation="..2026", kv_version=3, reason='a "b"\nc', none=None)
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert line.endswith(
        'info set.published generation=..2026 kv_version=3 reason="a \\"b\\"\\nc"\n'
    )


def test_an_event_is_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogConfig("json", "INFO"))
    Log().warning("delivery.failed", cause="sealed")
    event = json.loads(capsys.readouterr().err)
    assert (event["level"], event["event"], event["cause"]) == (
        "warning",
        "delivery.failed",
        "sealed",
    )


def test_the_same_bad_news_is_thinned_out_and_other_news_is_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure(LogConfig("text", "INFO"))
    now = [0.0]
    log = Log(clock=lambda: now[0])
    for second, same in ((0, "a"), (1, "a"), (2, "b"), (700, "b")):
        now[0] = second
        log.thinned("failed", same=same, every_seconds=600, at=second)
    lines = capsys.readouterr().err.splitlines()
    assert [line.rpartition("=")[2] for line in lines] == ["0", "2", "700"]


def test_an_unexpected_error_is_logged_by_type_and_place_without_its_text(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure(LogConfig("text", "DEBUG"))
    try:
        int("canary-4711")
    except ValueError as error:
        Log().unexpected("crashed", error)
    line = capsys.readouterr().err
    assert "canary" not in line
    assert "type=ValueError" in line
    assert "test_logs.py:" in line


def test_the_libraries_own_logs_go_nowhere(capsys: pytest.CaptureFixture[str]) -> None:
    handlers = logging.getLogger().handlers[:]
    configure(LogConfig("text", "DEBUG"))
    try:
        logging.getLogger("urllib3.connectionpool").warning("canary-4711")
    finally:
        logging.getLogger().handlers = handlers
    assert capsys.readouterr().err == ""
