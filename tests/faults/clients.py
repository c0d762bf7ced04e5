"""Clients that sign again and again while a fault runs its course, and what they saw."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

import grpc

from istio_hsm_proto import signing_v1_pb2 as pb
from istio_hsm_proto.signing_v1_pb2_grpc import SigningServiceStub
from tests.faults.scenarios import HANG_LIMIT_SECONDS, Fault
from tests.support.faults import FaultyHsm
from tests.support.plugin import Plugin

KEY_ID = b"fault-key"
ARGUMENTS = ("--hang-limit", f"{round(1000 * HANG_LIMIT_SECONDS)}ms", "--sessions", "4")

_CLIENTS = 4
_DEADLINE_SECONDS = 1.0
_PAUSE_SECONDS = 0.02
_BEFORE_SECONDS = 0.5
_CALM_SECONDS = 1.0
"""So long after the last failure a plugin counts as recovered."""


@dataclass(slots=True)
class Observation:
    """What the clients saw from the fault's begin on."""

    statuses: Counter[str] = field(default_factory=Counter)
    last_failure_at: float = 0.0
    slowest_seconds: float = 0.0
    details: Counter[str] = field(default_factory=Counter)

    @property
    def failures(self) -> dict[str, int]:
        """Calls by status, without the good ones."""
        return {status: count for status, count in self.statuses.items() if status != "OK"}


def make_key(stub: SigningServiceStub) -> None:
    """Make the key that is signed with."""
    stub.GenerateSigningKey(
        pb.GenerateSigningKeyRequest(key_id=KEY_ID, algorithm=pb.ECDSA_P256), timeout=10
    )


def sign(stub: SigningServiceStub, seconds: float = _DEADLINE_SECONDS) -> bytes:
    """Return one signature."""
    request = pb.SignRequest(key_id=KEY_ID, algorithm=pb.ECDSA_SHA256, digest=bytes(32))
    return stub.Sign(request, timeout=seconds).signature


def status_of(error: BaseException | None) -> grpc.Call:
    """Return what a blocking stub raised as the Call that it also is; the stubs cannot say so."""
    assert isinstance(error, grpc.RpcError)
    return cast("grpc.Call", error)


def observe(plugin: Plugin, hsm: FaultyHsm, fault: Fault) -> tuple[Observation, float]:
    """Return what was seen, and the seconds from the fault's end to the last failure.

    A fault without a duration ends as it begins.
    """
    with _signing(plugin) as observation:
        time.sleep(_BEFORE_SECONDS)
        assert not observation.failures, observation
        observation.statuses.clear()
        fault.begin(hsm)
        time.sleep(fault.lasts_seconds)
        ended_at = time.monotonic()
        if fault.lasts_seconds:
            fault.end(hsm)
        limit = ended_at + fault.recovers_seconds + _CALM_SECONDS
        calm_since = ended_at
        while time.monotonic() < limit and time.monotonic() - calm_since < _CALM_SECONDS + (
            0.0 if fault.lasts_seconds or fault.seen <= {"UNAVAILABLE"} else HANG_LIMIT_SECONDS
        ):
            time.sleep(_PAUSE_SECONDS)
            calm_since = max(calm_since, observation.last_failure_at)
    fault.end(hsm)
    return observation, max(observation.last_failure_at - ended_at, 0.0)


@contextmanager
def _signing(plugin: Plugin) -> Iterator[Observation]:
    observation, stop = Observation(), threading.Event()
    lock = threading.Lock()

    def work() -> None:
        with plugin.signing() as stub:
            while not stop.wait(_PAUSE_SECONDS):
                started, status = time.monotonic(), "OK"
                try:
                    sign(stub)
                except grpc.RpcError as error:
                    status = _note(observation, error)
                with lock:
                    now = time.monotonic()
                    observation.statuses[status] += 1
                    observation.slowest_seconds = max(observation.slowest_seconds, now - started)
                    if status != "OK":
                        observation.last_failure_at = now

    threads = [threading.Thread(target=work) for _ in range(_CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield observation
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _note(observation: Observation, error: grpc.RpcError) -> str:
    call = status_of(error)
    observation.details[call.details() or ""] += 1
    return call.code().name
