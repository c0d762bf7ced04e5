"""`audit verify` reads a log that is being written: what is under way is awaited, not blamed."""

import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hsm_plugin.audit_chain import EMPTY, Kind
from hsm_plugin.audit_command import Verify
from hsm_plugin.audit_verification import Fault, Report
from hsm_plugin.client import Client

_LINE, _HEAD = EMPTY.follow(Kind.USE, datetime(2026, 1, 1, tzinfo=UTC), {"key": "ca"})
_NEXT, _ = _HEAD.follow(Kind.USE, datetime(2026, 1, 1, tzinfo=UTC), {"key": "ca"})


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "audit.log"
    path.write_bytes(_LINE + _NEXT[:20])
    return path


def verified(path: Path, patience_seconds: float = 10) -> Report:
    client = Client(socket=str(path.with_name("none")), timeout_seconds=1)
    verify = Verify((path,), (), chain_only=True, head="", patience_seconds=patience_seconds)
    return verify.run(client)


def test_a_line_that_is_being_written_is_awaited(log: Path) -> None:
    def finish() -> None:
        with log.open("ab") as file:
            file.write(_NEXT[20:])

    timer = threading.Timer(0.1, finish)
    timer.start()
    report = verified(log)
    timer.join()
    assert report.finding is None
    assert report.entries == 2


def test_a_line_that_stays_cut_off_is_a_torn_tail(log: Path) -> None:
    finding = verified(log, patience_seconds=0.05).finding
    assert finding is not None
    assert (finding.fault, finding.entry) == (Fault.TORN, 2)
