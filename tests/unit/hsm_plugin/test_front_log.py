"""A flood of connections does not become a flood of log lines."""

import logging

import pytest

from hsm_plugin.front_log import PacedLog


def test_lines_beyond_the_rate_are_counted_and_told_of(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    paced = PacedLog(lambda: now)
    with caplog.at_level(logging.INFO):
        for _ in range(50):
            paced.event("connection.refused", "refused", level=logging.WARNING, uid=7)
        assert len(caplog.records) == 20
        assert vars(caplog.records[0])["uid"] == 7
        now = 10.0
        paced.event("connection.refused", "refused", level=logging.WARNING)
    assert len(caplog.records) == 21
    assert vars(caplog.records[-1])["left_out"] == 30


def test_a_flood_of_one_kind_hides_no_other(caplog: pytest.LogCaptureFixture) -> None:
    paced = PacedLog(lambda: 0.0)
    with caplog.at_level(logging.INFO):
        for _ in range(50):
            paced.event("connection.refused", "no certificate", level=logging.WARNING)
        paced.event("connection.refused", "too many", level=logging.WARNING)
    assert caplog.records[-1].getMessage() == "too many"


def test_kinds_beyond_the_limit_share_one_pace(caplog: pytest.LogCaptureFixture) -> None:
    paced = PacedLog(lambda: 0.0)
    with caplog.at_level(logging.INFO):
        for number in range(500):
            paced.event("connection.refused", f"reason {number}", level=logging.WARNING)
    assert len(caplog.records) == 100 + 20
