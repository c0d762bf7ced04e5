"""What ends is started again, until it is stopped."""

import signal
import sys
from pathlib import Path

from chaos.supervisor import Supervised
from chaos.waiting import wait_until

_LOOP = "import time; print('up', flush=True)\nwhile True: time.sleep(0.05)"


def started(folder: Path, program: str) -> Supervised:
    process = Supervised("one", [sys.executable, "-c", program], {}, folder / "one.log")
    process.start()
    return process


def starts(process: Supervised) -> int:
    return process.log.read_text().count("up")


def test_a_killed_process_is_started_again_and_its_end_is_chaos_own(tmp_path: Path) -> None:
    process = started(tmp_path, _LOOP)
    wait_until(lambda: starts(process) == 1, lambda: "the first start")
    process.send(signal.SIGKILL)
    wait_until(lambda: starts(process) == 2, lambda: "the second start")
    assert process.stop() == -signal.SIGTERM
    assert [(it.code, it.was_sent) for it in process.exits] == [(-signal.SIGKILL, True)]
    assert process.pid is None


def test_a_process_that_ends_by_itself_is_started_again_and_told(tmp_path: Path) -> None:
    process = started(tmp_path, "import sys; print('up', flush=True); sys.exit(3)")
    wait_until(lambda: starts(process) >= 2, lambda: "the second start")
    process.stop()
    assert {(it.code, it.was_sent) for it in process.exits} == {(3, False)}


def test_a_frozen_process_is_ended_all_the_same(tmp_path: Path) -> None:
    process = started(tmp_path, _LOOP)
    wait_until(lambda: starts(process) == 1, lambda: "the start")
    process.send(signal.SIGSTOP)
    assert process.stop() == -signal.SIGTERM
