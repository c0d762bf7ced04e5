"""The worker process is replaced when it must be, and never outlives its server."""

import os
import signal
import time
from pathlib import Path

import grpc
import pytest

from istio_hsm_proto import signing_v1_pb2 as pb
from tests.faults.clients import ARGUMENTS, KEY_ID, make_key, sign, status_of
from tests.faults.scenarios import HANG_LIMIT_SECONDS
from tests.support import plugin as plugins
from tests.support.faults import ON_THE_TOKEN, Ckr, FaultyHsm
from tests.support.plugin import NOT_SERVING, SERVING, Plugin


def worker_of(plugin: Plugin) -> int:
    """Return the process id of the plugin's worker."""
    task = Path(f"/proc/{plugin.pid}/task/{plugin.pid}/children")
    [worker] = task.read_text().split()
    return int(worker)


def test_other_calls_go_on_while_one_hangs(plugin: Plugin, hsm: FaultyHsm) -> None:
    with plugin.signing() as stub:
        hsm.hang("C_Sign", times=1)
        hung = stub.Sign.future(
            pb.SignRequest(key_id=KEY_ID, algorithm=pb.ECDSA_SHA256, digest=bytes(32)), timeout=1
        )
        plugin.wait_until(lambda: hsm.calls("C_Sign") > 0, "the hang")
        for _ in range(20):
            assert sign(stub)
        assert status_of(hung.exception()).code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_the_call_that_hung_is_not_sent_again_and_the_others_are(
    plugin: Plugin, hsm: FaultyHsm
) -> None:
    request = pb.SignRequest(key_id=KEY_ID, algorithm=pb.ECDSA_SHA256, digest=bytes(32))
    with plugin.signing() as stub:
        before = hsm.calls("C_Sign")
        hsm.hang("C_Sign", times=1)
        hung = stub.Sign.future(request, timeout=20)
        plugin.wait_until(lambda: hsm.calls("C_Sign") > before, "the hang")
        time.sleep(HANG_LIMIT_SECONDS / 2)
        hsm.delay(round(1.5e6 * HANG_LIMIT_SECONDS), "C_Sign")
        others = [stub.Sign.future(request, timeout=20) for _ in range(3)]
        plugin.wait_until(lambda: hsm.calls("C_Sign") > before + 3, "calls beside it")
        hsm.delay(0, "C_Sign")
        error = status_of(hung.exception())
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert "hung in the PKCS#11 module" in (error.details() or "")
        assert all(other.result().signature for other in others)
    assert hsm.calls("C_Sign") == before + 1 + 3 + 3
    assert len(plugin.events("worker.ended")) == 1


def test_a_killed_worker_is_replaced(plugin: Plugin) -> None:
    before = worker_of(plugin)
    os.kill(before, signal.SIGKILL)
    plugin.await_event("worker.ended")
    plugin.await_event("token.connected", 2)
    assert plugin.events("worker.ended")[0]["exit_code"] == -signal.SIGKILL
    assert worker_of(plugin) != before
    with plugin.signing() as stub:
        assert sign(stub)


def test_a_hung_worker_does_not_outlive_a_killed_server(plugin: Plugin, hsm: FaultyHsm) -> None:
    worker = worker_of(plugin)
    hsm.hang("C_Sign")
    with plugin.signing() as stub, pytest.raises(grpc.RpcError):
        sign(stub, 0.2)
    plugin.kill()
    end = time.monotonic() + 5
    while Path(f"/proc/{worker}").exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert not Path(f"/proc/{worker}").exists()


def test_a_hung_worker_does_not_hold_up_the_end(plugin: Plugin, hsm: FaultyHsm) -> None:
    hsm.hang("C_Sign")
    with plugin.signing() as stub, pytest.raises(grpc.RpcError):
        sign(stub, 0.2)
    started = time.monotonic()
    assert plugin.stop() == 0
    assert time.monotonic() - started < 10


def test_while_the_hsm_is_down_calls_fail_at_once_with_a_retry_hint(
    plugin: Plugin, hsm: FaultyHsm
) -> None:
    hsm.refuse(Ckr.DEVICE_ERROR, *ON_THE_TOKEN)
    with plugin.signing() as stub:
        with pytest.raises(grpc.RpcError):
            sign(stub)
        plugin.await_health(NOT_SERVING)
        started = time.monotonic()
        with pytest.raises(grpc.RpcError) as caught:
            sign(stub)
        assert time.monotonic() - started < 0.5
        call = status_of(caught.value)
        assert call.code() is grpc.StatusCode.UNAVAILABLE
        assert "CKR_DEVICE_ERROR" in (call.details() or "")
        metadata = dict(call.trailing_metadata() or ())
        assert int(metadata["grpc-retry-pushback-ms"]) > 0
        hsm.heal()
        plugin.await_health(SERVING)
        assert sign(stub)


def test_an_expired_call_never_reaches_the_token(plugin: Plugin, hsm: FaultyHsm) -> None:
    hsm.delay(300_000, "C_Sign")
    with plugin.signing() as stub:
        calls = [
            stub.Sign.future(
                pb.SignRequest(key_id=KEY_ID, algorithm=pb.ECDSA_SHA256, digest=bytes(32)),
                timeout=0.25,
            )
            for _ in range(40)
        ]
        assert {status_of(call.exception()).code() for call in calls} == {
            grpc.StatusCode.DEADLINE_EXCEEDED
        }
        time.sleep(1)
    assert hsm.calls("C_Sign") <= 8


def test_a_signature_costs_one_pair_of_calls(plugin: Plugin, hsm: FaultyHsm) -> None:
    with plugin.signing() as stub:
        sign(stub)
        before = hsm.call_counts()
        for _ in range(10):
            sign(stub)
    after = hsm.call_counts()
    spent = {name: after[name] - before.get(name, 0) for name in after}
    assert {name: count for name, count in spent.items() if count} == {
        "C_SignInit": 10,
        "C_Sign": 10,
    }


def test_a_token_with_few_sessions_is_enough(hsm: FaultyHsm, tmp_path: Path) -> None:
    hsm.limit_sessions(2)
    with (
        plugins.running(
            hsm.hsm, tmp_path / "run", arguments=ARGUMENTS, environment=hsm.environment()
        ) as plugin,
        plugin.signing() as stub,
    ):
        make_key(stub)
        request = pb.SignRequest(key_id=KEY_ID, algorithm=pb.ECDSA_SHA256, digest=bytes(32))
        calls = [stub.Sign.future(request, timeout=10) for _ in range(100)]
        assert all(call.result().signature for call in calls)
        assert hsm.calls("C_OpenSession") == 2
