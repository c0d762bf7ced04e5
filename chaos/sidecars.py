"""Sidecars that ask as Istio's agents do, and check each certificate that they get.

By token first, then by the certificate in hand, each time with a new key; now and then a pod is
replaced, which begins with its token again. What an agent retries is retried with backoff.
"""

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol, cast

import grpc
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec

from chaos.endpoints import OPTIONS
from istio_hsm_proto import istio_ca_pb2 as ca
from istio_hsm_proto.istio_ca_pb2_grpc import IstioCertificateServiceStub
from tests.integration.istiod_ca_bridge.harness import Workload, csr_of

CA_NAME = "istiod.istio-system.svc"

_RETRIED = {
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNAVAILABLE,
}
"""As Istio's agent has it."""
_CALL_SECONDS = 5.0
_BACKOFF = (0.1, 2.0)
_REBORN = 0.1
_PATIENCE_SECONDS = 60.0
"""After the end of the load, for requests under way."""
NO_REPLICA = "no replica is ready"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One call, or the lack of anybody to call."""

    at: float
    """When it ended; time.monotonic()."""
    seconds: float
    status: str
    address: str = ""

    @property
    def is_answered(self) -> bool:
        """Whether it brought a certificate."""
        return self.status == "OK"


@dataclass(slots=True)
class Tally:
    """What all sidecars saw; appended to by their threads."""

    attempts: list[Attempt] = field(default_factory=list)
    received: list[tuple[int, str]] = field(default_factory=list)
    """Serial and identity of each certificate."""
    waits: list[tuple[float, float]] = field(default_factory=list)
    """When a request was answered, and how long it took with all its attempts."""
    lost: list[str] = field(default_factory=list)
    """Requests that failed for good, and why."""
    wrong: list[str] = field(default_factory=list)
    """Certificates that are not what was asked for, and why."""

    def last_answer_from(self, address: str, since: float) -> bool:
        """Tell whether a replica has issued since a moment."""
        for attempt in reversed(self.attempts):
            if attempt.at < since:
                return False
            if attempt.address == address and attempt.is_answered:
                return True
        return False

    def last_failure(self, since: float) -> float:
        """Return when the last attempt since then failed; that moment when none did."""
        for attempt in reversed(self.attempts):
            if attempt.at < since:
                break
            if not attempt.is_answered:
                return attempt.at
        return since


class Service(Protocol):
    """Where connections go."""

    def any(self) -> str | None:
        """Return a ready replica's address; None while there is none."""
        ...


@dataclass(slots=True)
class Sidecar:
    """One workload's agent."""

    identity: str
    token: str = field(repr=False)
    roots: bytes
    issuer: x509.Certificate
    service: Service
    tally: Tally
    pause: float
    stopping: threading.Event
    held: Workload | None = None

    def run(self) -> None:
        """Ask again and again until stopped; what was begun is brought to its end."""
        while not self.stopping.is_set():
            if random.random() < _REBORN:  # noqa: S311 - spreads the load
                self.held = None
            self._obtain()
            self.stopping.wait(self.pause * random.uniform(0.5, 1.5))  # noqa: S311 - as above

    def _obtain(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        csr = csr_of(key)
        began, backoff = time.monotonic(), _BACKOFF[0]
        gives_up = float("inf")
        while True:
            status, workload = self._attempt(key, csr)
            if workload is not None:
                self._take(workload, time.monotonic() - began)
                return
            if status not in {it.name for it in _RETRIED} | {NO_REPLICA}:
                self.tally.lost.append(f"{self.identity}: {status}")
                self.held = None
                return
            if self.stopping.is_set():
                gives_up = min(gives_up, time.monotonic() + _PATIENCE_SECONDS)
            if time.monotonic() > gives_up:
                self.tally.lost.append(f"{self.identity}: {status} to the very end")
                return
            time.sleep(backoff * random.uniform(0.9, 1.1))  # noqa: S311 - jitter
            backoff = min(2 * backoff, _BACKOFF[1])

    def _attempt(self, key: ec.EllipticCurvePrivateKey, csr: str) -> tuple[str, Workload | None]:
        began, address = time.monotonic(), self.service.any()
        if address is None:
            status, workload = NO_REPLICA, None
        else:
            status, workload = self._call(address, key, csr)
        now = time.monotonic()
        self.tally.attempts.append(Attempt(now, now - began, status, address or ""))
        return status, workload

    def _call(
        self, address: str, key: ec.EllipticCurvePrivateKey, csr: str
    ) -> tuple[str, Workload | None]:
        held = self.held
        metadata: tuple[tuple[str, str | bytes], ...] = (("clusterid", "Kubernetes"),)
        if held is None:
            metadata += (("authorization", f"Bearer {self.token}"),)
        credentials = grpc.ssl_channel_credentials(
            self.roots,
            held.key_pem if held else None,
            "".join(held.chain[:-1]).encode() if held else None,
        )
        options = (("grpc.ssl_target_name_override", CA_NAME), *OPTIONS)
        try:
            with grpc.secure_channel(address, credentials, options) as channel:
                reply = IstioCertificateServiceStub(channel).CreateCertificate(
                    ca.IstioCertificateRequest(csr=csr, validity_duration=3600),
                    metadata=metadata,
                    timeout=_CALL_SECONDS,
                )
        except grpc.RpcError as error:
            code = cast("grpc.Call", error).code()
            if code in _RETRIED:
                return code.name, None
            return f"{code.name} {cast('grpc.Call', error).details()}", None
        return "OK", Workload(key, tuple(reply.cert_chain))

    def _take(self, workload: Workload, seconds: float) -> None:
        self.tally.waits.append((time.monotonic(), seconds))
        self.tally.received.append((workload.leaf.serial_number, self.identity))
        faults = faults_of(workload, self.identity, self.issuer, datetime.now(UTC))
        if faults:
            self.tally.wrong.append(f"{workload.leaf.serial_number:x}: {', '.join(faults)}")
        self.held = workload


def faults_of(
    workload: Workload, identity: str, issuer: x509.Certificate, now: datetime
) -> list[str]:
    """Return what is wrong with a certificate; nothing, as a rule."""
    leaf, faults = workload.leaf, []
    if leaf.public_key() != workload.key.public_key():
        faults.append("it is for another key")
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    if list(names) != [x509.UniformResourceIdentifier(identity)]:
        faults.append(f"it names {list(names)}")
    if not leaf.not_valid_before_utc <= now < leaf.not_valid_after_utc:
        faults.append(f"valid {leaf.not_valid_before_utc} to {leaf.not_valid_after_utc}")
    if len(workload.chain) < 2:  # noqa: PLR2004 - the leaf and at least the root
        faults.append("its chain is too short")
    elif x509.load_pem_x509_certificate(workload.chain[1].encode()) != issuer:
        faults.append("its chain has another CA")
    try:
        leaf.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        faults.append("the CA did not sign it")
    return faults


class Load:
    """All sidecars, each on a thread."""

    def __init__(self, sidecars: Sequence[Sidecar], stopping: threading.Event) -> None:
        self._stopping = stopping
        self._threads = [threading.Thread(target=_guarded(it), daemon=True) for it in sidecars]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Return once every request that was begun is answered or lost."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()


def _guarded(sidecar: Sidecar) -> Callable[[], None]:
    """Return a thread's work; an error of ours must not look like a quiet sidecar."""

    def work() -> None:
        try:
            sidecar.run()
        except Exception as error:  # noqa: BLE001 - whatever it is, the run must not pass
            sidecar.tally.lost.append(f"{sidecar.identity}: {type(error).__name__}: {error}")

    return work
