"""How many workers there are, what each one's share is, and what files of theirs are called."""

import os
from pathlib import Path

import pytest

from istiod_ca_bridge.config import read_config
from istiod_ca_bridge.errors import ConfigError, TamperedLogError
from istiod_ca_bridge.issuance_chain_name import log_of_worker, worker_of
from istiod_ca_bridge.issuance_verify import verify_each
from istiod_ca_bridge.replica_report import pod_of, replica_name
from istiod_ca_bridge.worker_count import MOST_BY_ITSELF, cores, worker_count
from istiod_ca_bridge.worker_seat import WorkerSeat, share_of
from tests.unit.istiod_ca_bridge.test_issuance_log import Book

LEAST = {"KEY_MANAGEMENT_KEY_ID": "kek"}
SECOND = WorkerSeat(number=2, count=2, listener=5, shares=6, channel=7)


def test_there_is_one_process_unless_more_are_asked_for() -> None:
    assert read_config(LEAST).workers == 1
    assert read_config(LEAST | {"CA_WORKERS": "3"}).workers == 3


@pytest.mark.parametrize(
    "text", ["0", "33", "-1", "1.5", "two", "²", "٣", "9" * 5000, "1 2", "AUTO"]
)
def test_what_is_no_number_of_workers_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="CA_WORKERS must be 1 to 32, or auto"):
        read_config(LEAST | {"CA_WORKERS": text})


@pytest.mark.parametrize(
    "mode",
    [
        {"BRIDGE_MODE": "csr-signer", "CERT_SIGNER_DOMAIN": "a.test", "CERT_SIGNER_NAMES": "n"},
        {"BRIDGE_MODE": "sealed", "CA_PLUG_IN_DIR": "/x"},
    ],
)
def test_a_mode_in_which_no_agent_asks_has_one_process(mode: dict[str, str]) -> None:
    settings = LEAST | {"HEALTH_LISTEN": "127.0.0.1:1"} | mode
    assert read_config(settings).workers == 1

    with pytest.raises(ConfigError, match="CA_WORKERS=2 is for modes that answer agents"):
        read_config(settings | {"CA_WORKERS": "2"})


def test_auto_is_a_worker_for_each_core_up_to_four(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for count in (1, 3, 64):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, count=count: set(range(count)))
        found.append(worker_count("auto"))

    assert found[0] == 1
    assert max(found) <= MOST_BY_ITSELF


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("200000 100000", 2), ("150000 100000", 2), ("1000 100000", 1), ("max 100000", 8), ("x", 8)],
)
def test_a_limit_of_the_container_counts_as_its_cores(
    limit: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    (tmp_path / "cpu.max").write_text(f"{limit}\n")

    assert cores(tmp_path / "cpu.max") == expected
    assert cores(tmp_path / "none") == 8


def test_limits_are_the_bridges_and_are_divided_and_what_is_its_own_is_left_out(
    tmp_path: Path,
) -> None:
    config = read_config(
        LEAST
        | {
            "CA_WORKERS": "2",
            "CA_MAX_CONNECTIONS": "7",
            "CA_MAX_WAITING": "100",
            "HEALTH_LISTEN": "127.0.0.1:1",
            "METRICS_LISTEN": "127.0.0.1:2",
            "ISSUANCE_LOG": str(tmp_path / "issued"),
        }
    )
    share = share_of(config, SECOND)

    assert (share.max_connections, share.max_waiting, share.worker) == (4, 50, 2)
    assert (share.health_listen, share.metrics_listen) == (None, None)
    assert share.issuance_log is not None
    assert share.issuance_log.path == tmp_path / "issued.worker-2"
    assert (share.listen, share.pod_name) == (config.listen, config.pod_name)


def test_the_first_worker_goes_on_with_the_log_of_a_single_process() -> None:
    path = Path("/logs/issued.log")
    assert log_of_worker(path, 1) == path

    for number in (1, 2, 32):
        name = log_of_worker(path, number).name
        assert worker_of(Path(name)) == worker_of(Path(f"{name}.000000000123")) == number
    assert worker_of(Path("issued-2.log")) == 1


def test_no_pod_and_no_other_worker_has_a_workers_name() -> None:
    assert replica_name("bridge-0", 0) == pod_of("bridge-0") == "bridge-0"
    assert replica_name("bridge-0", 2) == "bridge-0_2"
    assert pod_of("bridge-0_2") == "bridge-0"
    assert pod_of("_2") == "_2"


async def test_each_workers_log_is_a_chain_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Book(tmp_path / "a"), Book(tmp_path / "b")
    for pid, (book, serials) in enumerate(((first, "ab"), (second, "c"))):
        monkeypatch.setattr(os, "getpid", lambda pid=pid: pid)
        book.path.parent.mkdir()
        await book.note(*serials)
    both = [first.path, second.path.rename(tmp_path / "issued.log.worker-2")]

    found = verify_each(reversed(both), None)
    assert {worker: findings.issued for worker, findings in found.items()} == {1: 2, 2: 1}

    with both[1].open("r+b") as file:
        file.write(b"x")
    with pytest.raises(TamperedLogError, match=r"worker-2:1: "):
        verify_each(both, None)


async def test_one_workers_log_does_not_stand_in_for_anothers(tmp_path: Path) -> None:
    book = Book(tmp_path)
    await book.note("a")
    copy = tmp_path / "issued.log.worker-2"
    copy.write_bytes(book.path.read_bytes())

    with pytest.raises(TamperedLogError, match="the log of another worker"):
        verify_each([book.path, copy], None)
