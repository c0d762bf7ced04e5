"""DEKs made ahead: each is given out once, all are accounted for, and none outlives its KEK."""

import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest

from istio_hsm_proto import kms_istio_v1_pb2 as kms
from istio_hsm_proto import rotation_v1_pb2 as rotation
from istio_hsm_proto.kms_istio_v1_pb2_grpc import KeyManagementServiceStub
from istio_hsm_proto.rotation_v1_pb2_grpc import RotationServiceStub
from tests.faults.clients import ARGUMENTS, status_of
from tests.support import plugin as plugins
from tests.support.faults import ON_THE_TOKEN, Ckr, FaultyHsm
from tests.support.plugin import NOT_SERVING, SERVING, Plugin

KEK = b"asked-for-often"
_CLIENTS = 4
_MANY = 400


@dataclass
class Seen:
    """What clients got that ask for DEKs again and again."""

    blobs: list[bytes] = field(default_factory=list)
    refusals: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Site:
    """A plugin with an audit log."""

    plugin: Plugin
    log: Path

    def stocked(self, what: str) -> int:
        """Return how many DEKs the log tells as `made`, or as `dropped`."""
        entries = (json.loads(line) for line in self.log.read_bytes().splitlines())
        return sum(entry.get(what, 0) for entry in entries if entry["kind"] == "stock")

    def used(self) -> int:
        """Return how many DEKs were given out, by the log."""
        entries = [json.loads(line) for line in self.log.read_bytes().splitlines()]
        named = [entry for entry in entries if entry.get("method") == "GenerateDEK"]
        return sum(entry["outcome"] == "OK" for entry in named)


@contextmanager
def serving(hsm: FaultyHsm, folder: Path, *arguments: str) -> Iterator[Site]:
    log = folder / "audit.log"
    environment = hsm.environment() | {"AUDIT_LOG": str(log), "AUDIT_ON_FAILURE": "drop"}
    with plugins.running(
        hsm.hsm, folder / "run", arguments=(*ARGUMENTS, *arguments), environment=environment
    ) as plugin:
        with plugin.keys() as keys:
            keys.GenerateKEK(kms.GenerateKEKRequest(kek_kid=KEK), timeout=10)
        yield Site(plugin, log)


@pytest.fixture
def site(hsm: FaultyHsm, tmp_path: Path) -> Iterator[Site]:
    with serving(hsm, tmp_path) as site:
        yield site


def new_dek(keys: KeyManagementServiceStub) -> bytes:
    request = kms.GenerateDEKRequest(kek_kid=KEK)
    return keys.GenerateDEK(request, timeout=10).encrypted_dek_blob


def refusal(keys: KeyManagementServiceStub) -> grpc.StatusCode | None:
    """Return the status of a call that is refused, None for one that is answered."""
    try:
        new_dek(keys)
    except grpc.RpcError as error:
        return status_of(error).code()
    return None


@contextmanager
def asking(plugin: Plugin) -> Iterator[Seen]:
    """While inside, clients ask for DEKs as fast as they can."""
    seen, stop, lock = Seen(), threading.Event(), threading.Lock()

    def work() -> None:
        with plugin.keys() as keys:
            while not stop.is_set():
                try:
                    blob = new_dek(keys)
                except grpc.RpcError as error:
                    with lock:
                        seen.refusals[status_of(error).code().name] += 1
                    stop.wait(0.01)
                else:
                    with lock:
                        seen.blobs.append(blob)

    threads = [threading.Thread(target=work) for _ in range(_CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def await_many(site: Site, seen: Seen) -> None:
    wanted = len(seen.blobs) + _MANY
    site.plugin.wait_until(lambda: len(seen.blobs) >= wanted, f"{_MANY} DEKs more")


def test_each_dek_is_given_out_once_and_the_audit_log_accounts_for_every_use_of_the_kek(
    site: Site, hsm: FaultyHsm
) -> None:
    before = hsm.calls("C_Encrypt")
    with asking(site.plugin) as seen:
        await_many(site, seen)
    assert not seen.refusals
    assert len(set(seen.blobs)) == len(seen.blobs)
    assert site.plugin.stop() == 0
    made, dropped = site.stocked("made"), site.stocked("dropped")
    from_stock = made - dropped
    assert 0 < from_stock <= len(seen.blobs) == site.used()
    assert hsm.calls("C_Encrypt") - before == made + len(seen.blobs) - from_stock
    verified = plugins.command(["audit", "verify", "--chain-only", str(site.log)])
    assert verified.returncode == 0, verified.stdout


def test_a_dek_made_ahead_opens_as_any_other_and_only_under_its_kek(site: Site) -> None:
    with asking(site.plugin) as seen:
        await_many(site, seen)
    assert site.stocked("made") > 0
    with site.plugin.keys() as keys:
        keys.GenerateKEK(kms.GenerateKEKRequest(kek_kid=b"another"), timeout=10)
        for blob in seen.blobs[-50:]:
            request = kms.AuthenticatedEncryptRequest(
                kek_kid=KEK, encrypted_dek_blob=blob, plaintext=b"text"
            )
            assert keys.AuthenticatedEncrypt(request, timeout=10).ciphertext
        request.kek_kid = b"another"
        with pytest.raises(grpc.RpcError) as refused:
            keys.AuthenticatedEncrypt(request, timeout=10)
        assert status_of(refused.value).code() is grpc.StatusCode.INVALID_ARGUMENT


def test_no_dek_is_given_out_twice_when_the_worker_is_killed(site: Site) -> None:
    with asking(site.plugin) as seen:
        await_many(site, seen)
        children = Path(f"/proc/{site.plugin.pid}/task/{site.plugin.pid}/children")
        os.kill(int(children.read_text().split()[0]), signal.SIGKILL)
        site.plugin.await_event("token.connected", 2)
        await_many(site, seen)
    assert len(set(seen.blobs)) == len(seen.blobs)
    assert site.plugin.stop() == 0
    assert site.used() == len(seen.blobs)
    assert site.stocked("made") - site.stocked("dropped") <= len(seen.blobs)


def test_once_a_kek_is_destroyed_no_dek_of_it_is_given_out(site: Site) -> None:
    with site.plugin.channel() as channel, site.plugin.keys() as keys:
        with asking(site.plugin) as seen:
            await_many(site, seen)
            request = rotation.DestroyKEKRequest(kek_id=KEK, confirm_kek_id=KEK)
            RotationServiceStub(channel).DestroyKEK(request, timeout=10)
            assert [refusal(keys) for _ in range(20)] == [grpc.StatusCode.NOT_FOUND] * 20
        assert set(seen.refusals) <= {"NOT_FOUND"}


def test_a_kek_that_another_program_destroyed_is_refused_too_and_stays_so(
    site: Site, hsm: FaultyHsm, tmp_path: Path
) -> None:
    with (
        plugins.running(hsm.hsm, tmp_path / "other", environment=hsm.environment()) as other,
        other.channel() as channel,
        asking(site.plugin) as seen,
    ):
        await_many(site, seen)
        request = rotation.DestroyKEKRequest(kek_id=KEK, confirm_kek_id=KEK)
        RotationServiceStub(channel).DestroyKEK(request, timeout=10)
        site.plugin.wait_until(lambda: sum(seen.refusals.values()) >= _CLIENTS, "refusals")
        with site.plugin.keys() as keys:
            assert all(refusal(keys) for _ in range(20))


def test_with_the_token_known_to_be_gone_nothing_is_answered_from_the_stock(
    site: Site, hsm: FaultyHsm
) -> None:
    with asking(site.plugin) as seen, site.plugin.keys() as keys:
        await_many(site, seen)
        hsm.refuse(Ckr.TOKEN_NOT_PRESENT, *ON_THE_TOKEN)
        site.plugin.await_health(NOT_SERVING)
        assert [refusal(keys) for _ in range(20)] == [grpc.StatusCode.UNAVAILABLE] * 20
        hsm.heal()
        site.plugin.await_health(SERVING)
        await_many(site, seen)
    assert len(set(seen.blobs)) == len(seen.blobs)


@pytest.mark.parametrize("cipher", ["aes-gcm", "aes-cbc"])
def test_switched_off_each_dek_is_a_call_of_the_token(
    hsm: FaultyHsm, tmp_path: Path, cipher: str
) -> None:
    arguments = ("--dek-stock", "off", "--algorithm", cipher)
    with serving(hsm, tmp_path, *arguments) as site:
        before = hsm.calls("C_Encrypt")
        with asking(site.plugin) as seen:
            await_many(site, seen)
        assert hsm.calls("C_Encrypt") - before == len(seen.blobs)
        assert site.plugin.stop() == 0
        assert site.stocked("made") == site.stocked("dropped") == 0


def test_a_stock_for_aes_cbc_is_accounted_for_as_well(hsm: FaultyHsm, tmp_path: Path) -> None:
    with serving(hsm, tmp_path, "--algorithm", "aes-cbc") as site:
        with asking(site.plugin) as seen:
            await_many(site, seen)
        assert len(set(seen.blobs)) == len(seen.blobs)
        assert site.plugin.stop() == 0
        assert 0 < site.stocked("made") - site.stocked("dropped") <= len(seen.blobs)
