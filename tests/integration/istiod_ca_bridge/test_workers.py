"""A bridge of two workers: they share the callers, and the rest is as with one process."""

import contextlib
import fcntl
import os
import re
import signal
import socket
import ssl
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from istiod_ca_bridge.issuance_verify import certificates
from tests.integration.istiod_ca_bridge import harness
from tests.integration.istiod_ca_bridge.conftest import Mesh, token_settings
from tests.integration.istiod_ca_bridge.worker_processes import (
    await_workers,
    command_of,
    is_alive,
    kill,
    workers_of,
)
from tests.support.figures import figures
from tests.support.plugin import SERVING, program

_MAX_CONNECTIONS = 20


@dataclass(frozen=True, slots=True)
class Pair:
    """A serving bridge of two workers."""

    mesh: Mesh
    bridge: harness.Bridge
    tokens: harness.TokenIssuer
    log: Path

    def figures(self) -> dict[str, float]:
        return figures(self.bridge.environment["METRICS_LISTEN"])

    def of_each(self, name: str) -> dict[int, float]:
        """Return a figure by worker."""
        found = self.figures()
        return {number: found[f'{name}{{worker="{number}"}}'] for number in (1, 2)}

    def issue(self) -> harness.Workload:
        return harness.create_certificate(self.bridge, token=self.tokens.token())

    def logs(self) -> list[Path]:
        return [self.log, self.log.with_name(f"{self.log.name}.worker-2")]


def connect(bridge: harness.Bridge) -> ssl.SSLSocket:
    """Return a TLS connection; OSError when it is hung up on."""
    host, _, port = bridge.address.rpartition(":")
    context = ssl.create_default_context(cafile=str(bridge.root_file))
    context.set_alpn_protocols(["h2"])
    return context.wrap_socket(
        socket.create_connection((host, int(port))), server_hostname="localhost"
    )


@pytest.fixture(scope="module")
def pair(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("pair")
    tokens = harness.token_issuer()
    log = folder / "issued.log"
    settings = token_settings(folder, tokens) | {
        "CA_WORKERS": "2",
        "CA_KEY_ALGORITHM": "ecdsa-p256",
        "CA_MAX_CONNECTIONS": str(_MAX_CONNECTIONS),
        "ISSUANCE_LOG": str(log),
    }
    with harness.running_bridge(folder, mesh.plugin.socket, settings) as bridge:
        harness.bring_to_serving(bridge, mesh.plugin, mesh.root)
        await_workers(bridge, 2)
        yield Pair(mesh, bridge, tokens, log)


def test_connections_are_shared_evenly_and_are_as_many_as_the_bridge_may_have(pair: Pair) -> None:
    with contextlib.ExitStack() as ending:
        for _ in range(8):
            ending.enter_context(connect(pair.bridge))
        assert pair.of_each("istiod_ca_bridge_connections") == {1: 4, 2: 4}

        for _ in range(_MAX_CONNECTIONS - 8):
            ending.enter_context(connect(pair.bridge))
        with pytest.raises(OSError, match=r"."):
            connect(pair.bridge)


def test_each_certificate_is_counted_by_one_worker_and_is_in_one_log(pair: Pair) -> None:
    before = pair.of_each("citadel_server_success_cert_issuance_count")
    serials = [f"{pair.issue().leaf.serial_number:x}" for _ in range(10)]
    after = pair.of_each("citadel_server_success_cert_issuance_count")

    assert sum(after.values()) - sum(before.values()) == 10
    assert min(after[number] - before[number] for number in (1, 2)) > 0
    logged = Counter(serial for serial, _, _ in certificates(pair.logs()))
    assert [logged[serial] for serial in serials] == [1] * 10


def test_the_logs_of_both_are_verified_together_and_one_that_was_changed_is_named(
    pair: Pair, tmp_path: Path
) -> None:
    pair.issue()
    copies = [tmp_path / path.name for path in pair.logs()]
    for copy, path in zip(copies, pair.logs(), strict=True):
        copy.write_bytes(path.read_bytes())

    told = verified(copies)
    assert told.returncode == 0, told.stderr
    assert "worker 1: intact" in told.stdout
    assert "worker 2: intact" in told.stdout

    copies[1].write_bytes(copies[1].read_bytes().replace(b'"opened"', b'"Opened"', 1))
    told = verified(copies)
    assert told.returncode == 1
    assert "worker-2:1" in told.stderr


def verified(logs: list[Path]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program("istiod-ca-bridge"), "log", "verify", *map(str, logs)],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def test_one_of_them_writes_and_one_address_tells_of_both(pair: Pair) -> None:
    found = pair.figures()

    assert sum(pair.of_each("istiod_ca_bridge_leader").values()) == 1
    assert pair.of_each("istiod_ca_bridge_ready") == {1: 1, 2: 1}
    assert 'process_resident_memory_bytes{worker="bridge"}' in found
    assert all("worker=" in name for name in found)


def test_a_worker_is_given_numbers_and_three_descriptors_and_no_secret(pair: Pair) -> None:
    for number, pid in workers_of(pair.bridge).items():
        words = command_of(pid)
        after = words[words.index("worker") + 1 :]
        assert all(re.fullmatch(r"[0-9]*", word) for word in after), words
        assert int(after[0]) == number
        environ = (Path("/proc") / str(pid) / "environ").read_bytes().split(b"\0")
        assert {entry.partition(b"=")[0].decode() for entry in environ if entry} <= {
            *pair.bridge.environment,
            "LC_CTYPE",
        }


def test_a_log_line_names_its_worker_and_lines_are_whole(pair: Pair) -> None:
    lines = [line for line in pair.bridge.log.splitlines() if " certificate.issued " in line]

    assert {line.rpartition(" ")[2] for line in lines} == {"worker=1", "worker=2"}
    assert all(line.count("certificate.issued") == 1 for line in lines)


def test_while_one_is_killed_the_other_serves_and_it_is_started_again(pair: Pair) -> None:
    leader = next(it for it, leads in pair.of_each("istiod_ca_bridge_leader").items() if leads)
    restarts = pair.of_each("istiod_ca_bridge_worker_restarts_total")
    told = pair.bridge.log.count("workers.serving serving=1 of=2")
    dead = kill(pair.bridge, leader)
    pair.bridge.wait_until(lambda: not is_alive(dead), "the end of a worker")

    for _ in range(10):
        pair.issue()
        assert pair.bridge.health() == SERVING
    pair.bridge.await_log(f"worker.ended number={leader} how=SIGKILL")
    pair.bridge.await_log("workers.serving serving=1 of=2", count=told + 1)
    await_workers(pair.bridge, 2)

    assert pair.of_each("istiod_ca_bridge_worker_restarts_total")[leader] == restarts[leader] + 1
    assert pair.of_each("istiod_ca_bridge_leader")[3 - leader] == 1
    assert workers_of(pair.bridge)[leader] != dead
    assert verified(pair.logs()).returncode == 0


def test_a_worker_that_is_frozen_does_not_hold_up_the_callers_of_the_other(pair: Pair) -> None:
    frozen = workers_of(pair.bridge)[1]
    os.kill(frozen, signal.SIGSTOP)
    try:
        with contextlib.ExitStack() as ending:
            for _ in range(4):
                ending.enter_context(connect(pair.bridge))
            pair.issue()
    finally:
        os.kill(frozen, signal.SIGCONT)


def test_workers_end_with_a_bridge_that_is_killed_and_the_next_one_goes_on(
    mesh: Mesh, tmp_path: Path
) -> None:
    settings = {"CA_WORKERS": "2", "CA_KEY_ALGORITHM": "ecdsa-p256"}
    with harness.running_bridge(tmp_path, mesh.plugin.socket, settings) as bridge:
        harness.bring_to_serving(bridge, mesh.plugin, mesh.root)
        pids = workers_of(bridge)
        assert sorted(pids) == [1, 2]
        bridge.kill()

        end = time.monotonic() + 5
        while any(map(is_alive, pids.values())):
            assert time.monotonic() < end, "a worker outlives its bridge"
            time.sleep(0.01)
    with harness.running_bridge(tmp_path, mesh.plugin.socket, bridge.environment) as after:
        after.await_serving()
        assert after.stop() == 0
        assert after.log.count("bridge.stopped") == 2


def test_what_a_worker_cannot_mend_ends_the_bridge_with_its_reason_told_once(
    mesh: Mesh, tmp_path: Path
) -> None:
    lock = os.open(tmp_path / "issued.worker-2.lock", os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    settings = {"CA_WORKERS": "2", "ISSUANCE_LOG": str(tmp_path / "issued")}
    with harness.running_bridge(tmp_path, mesh.plugin.socket, settings) as bridge:
        assert bridge.await_exit() == 2
    os.close(lock)

    assert bridge.log.count("error: ISSUANCE_LOG: another process writes") == 1
    assert "hint: each replica needs a file of its own" in bridge.log
