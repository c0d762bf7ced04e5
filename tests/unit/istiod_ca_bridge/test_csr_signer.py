import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from istiod_ca_bridge.authority import Authority, authority
from istiod_ca_bridge.chain import CaChain
from istiod_ca_bridge.csr_signer import CsrSigner
from istiod_ca_bridge.errors import (
    AnsweredElsewhereError,
    ClusterUnavailableError,
    IssuanceLogError,
    KeyServiceUnavailableError,
)
from istiod_ca_bridge.issuance_chain import Facts
from istiod_ca_bridge.ledger import Ledger
from istiod_ca_bridge.metrics import Metrics
from istiod_ca_bridge.observed import Change, Listing
from istiod_ca_bridge.signer import PublicKey, key_der
from istiod_ca_bridge.signing_request import Requests, SigningRequest
from tests.support import pki
from tests.unit.istiod_ca_bridge.doubles import (
    NOW,
    LocalSigner,
    ca_certificate,
    local_signer,
    recorded_log,
)
from tests.unit.istiod_ca_bridge.test_signing_request import CART, POLICY, csr, request, uri

SIGNER = "mesh.example.com/hsm"
Event = Listing[SigningRequest] | Change[SigningRequest]


@dataclass(slots=True)
class Cluster:
    """Requests in memory: the first answer to a state of one wins, as at an API server."""

    requests: dict[str, SigningRequest] = field(default_factory=dict)
    watches: list[asyncio.Queue[Event | Exception | None]] = field(default_factory=list)
    certificates: dict[str, str] = field(default_factory=dict)
    failed: dict[str, tuple[str, str]] = field(default_factory=dict)
    failures: int = 0
    under_way: int = 0
    most_under_way: int = 0

    async def open(self, signer: str) -> Requests:
        queue: asyncio.Queue[Event | Exception | None] = asyncio.Queue()
        self.watches.append(queue)
        yield Listing({n: it for n, it in self.requests.items() if it.signer == signer})
        while (event := await queue.get()) is not None:
            if isinstance(event, Exception):
                raise event
            yield event

    async def issue(self, request: SigningRequest, chain_pem: str) -> None:
        await self._answer(request)
        self.certificates[request.name] = chain_pem

    async def fail(self, request: SigningRequest, reason: str, message: str) -> None:
        await self._answer(request)
        self.failed[request.name] = (reason, message)

    async def _answer(self, request: SigningRequest) -> None:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await asyncio.sleep(0)
        self.under_way -= 1
        if self.failures:
            self.failures -= 1
            raise ClusterUnavailableError("away")
        if self.requests.get(request.name) != request:
            raise AnsweredElsewhereError("changed")
        del self.requests[request.name]
        self.tell(Change(request.name, None))

    def put(self, it: SigningRequest) -> None:
        self.requests[it.name] = it
        self.tell(Change(it.name, it))

    def tell(self, event: Event | Exception | None) -> None:
        for queue in self.watches:
            queue.put_nowait(event)
        if not isinstance(event, Listing | Change):
            self.watches.clear()


def ca() -> Authority:
    root, signer = pki.root(), local_signer()
    chain = CaChain((ca_certificate(signer.public_key, root),), (root.certificate,))
    return authority(chain, signer)


@asynccontextmanager
async def running(
    cluster: Cluster,
    *serving: Authority,
    replicas: int = 1,
    ledger: Ledger | None = None,
    blocked_keys: frozenset[bytes] = frozenset(),
    metrics: Metrics | None = None,
) -> AsyncIterator[list[str]]:
    log, lines = recorded_log()
    signers = [
        CsrSigner(
            cluster,
            (SIGNER,),
            POLICY,
            lambda: serving[0] if serving else None,
            lambda: NOW,
            log,
            metrics or Metrics(),
            ledger=ledger,
            blocked_keys=blocked_keys,
        )
        for _ in range(replicas)
    ]
    tasks = [asyncio.create_task(signer.run()) for signer in signers]
    yield lines
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def until(condition: object) -> None:
    assert callable(condition)
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is awaited is not ours
            await asyncio.sleep(0.005)


def named(name: str) -> SigningRequest:
    return replace(request(csr(uri(CART))), name=name)


async def test_what_waits_at_the_start_and_what_comes_later_are_both_signed() -> None:
    cluster, serving = Cluster({"early": named("early")}), ca()
    async with running(cluster, serving) as lines:
        await until(lambda: "early" in cluster.certificates)
        cluster.put(named("late"))
        await until(lambda: "late" in cluster.certificates)

    leaf, *intermediates = x509.load_pem_x509_certificates(cluster.certificates["late"].encode())
    leaf.verify_directly_issued_by(serving.chain.ca)
    assert intermediates == list(serving.chain.intermediates)
    assert sum("certificate.issued" in line for line in lines) == 2


async def test_a_refused_request_fails_with_its_reason() -> None:
    foreign = replace(named("foreign"), csr_pem=csr(uri("spiffe://evil.test/ns/a/sa/b")))
    cluster = Cluster({"foreign": foreign, "empty": replace(named("empty"), csr_pem="")})
    async with running(cluster, ca()):
        await until(lambda: len(cluster.failed) == 2)

    assert cluster.failed["foreign"] == ("Forbidden", "trust domain evil.test is not of this mesh")
    assert cluster.failed["empty"] == ("Invalid", "the CSR is empty")
    assert cluster.certificates == {}


async def test_each_kind_of_answer_is_counted_once() -> None:
    foreign = replace(named("foreign"), csr_pem=csr(uri("spiffe://evil.test/ns/a/sa/b")))
    empty = replace(named("empty"), csr_pem="")
    good = {name: named(name) for name in ("one", "two")}
    cluster, metrics = Cluster({"foreign": foreign, "empty": empty, **good}, failures=1), Metrics()
    async with running(cluster, ca(), metrics=metrics):
        await until(lambda: len(cluster.failed) == len(cluster.certificates) == 2)

    counted = metrics.exposition().decode()
    for line in (
        "citadel_server_csr_count 4.0",
        "citadel_server_success_cert_issuance_count 2.0",
        "citadel_server_authentication_failure_count 1.0",
        "citadel_server_csr_parsing_err_count 1.0",
        'citadel_server_csr_sign_err_count{error="CSR_ERROR"} 1.0',
        'citadel_server_csr_sign_err_count{error="CERT_GEN_ERROR"} 1.0',
        'istiod_ca_bridge_requests_total{by="csr",status="OK"} 2.0',
        'istiod_ca_bridge_requests_total{by="csr",status="PERMISSION_DENIED"} 1.0',
        'istiod_ca_bridge_requests_total{by="csr",status="INVALID_ARGUMENT"} 1.0',
        'istiod_ca_bridge_request_seconds_count{by="csr"} 2.0',
    ):
        assert line in counted.splitlines(), line


async def test_a_listed_key_is_refused() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    listed = replace(named("listed"), csr_pem=csr(uri(CART), key=key))
    blocked = frozenset({hashlib.sha256(key_der(key.public_key())).digest()})
    cluster = Cluster({"listed": listed, "good": named("good")})
    async with running(cluster, ca(), blocked_keys=blocked):
        await until(lambda: cluster.failed and cluster.certificates)

    assert cluster.failed == {
        "listed": ("Invalid", "the CSR's key is on this CA's list of keys to refuse")
    }
    assert list(cluster.certificates) == ["good"]


class Book:
    """A ledger that cannot be written at first."""

    def __init__(self, failures: int) -> None:
        self.kept: list[Facts] = []
        self._failures = failures

    async def record(self, facts: Facts) -> None:
        if self._failures:
            self._failures -= 1
            raise IssuanceLogError("the disk is full")
        self.kept.append(facts)


async def test_what_the_issuance_log_does_not_hold_does_not_leave() -> None:
    cluster, book = Cluster({"one": named("one")}), Book(failures=1)
    async with running(cluster, ca(), ledger=book) as lines:
        await until(lambda: "one" in cluster.certificates)

    leaf = x509.load_pem_x509_certificates(cluster.certificates["one"].encode())[0]
    assert [facts["serial"] for facts in book.kept] == [f"{leaf.serial_number:x}"]
    assert (book.kept[0]["by"], book.kept[0]["names"]) == ("csr", CART)
    assert any("the disk is full" in line for line in lines)


async def test_requests_wait_for_the_ca_and_outlast_an_api_server_that_is_away() -> None:
    cluster = Cluster({"one": named("one")}, failures=2)
    async with running(cluster) as lines:
        await until(lambda: any("csr.delayed" in line for line in lines))
    assert cluster.certificates == {}

    async with running(cluster, ca()) as lines:
        await until(lambda: "one" in cluster.certificates)
    assert sum("csr.delayed" in line for line in lines) == 1


async def test_a_request_for_a_ca_s_own_key_is_refused_and_one_for_another_key_is_not() -> None:
    root, signer = pki.root(), local_signer()
    chain = CaChain((ca_certificate(signer.public_key, root),), (root.certificate,))
    assert isinstance(root.key, ec.EllipticCurvePrivateKey)
    assert isinstance(signer.key, ec.EllipticCurvePrivateKey)
    cluster = Cluster(
        {
            name: replace(request(csr(uri(CART), key=key)), name=name)
            for name, key in (("ca", signer.key), ("root", root.key))
        }
        | {"workload": named("workload")}
    )
    async with running(cluster, authority(chain, signer)):
        await until(lambda: not cluster.requests)

    assert set(cluster.certificates) == {"workload"}
    for name in ("ca", "root"):
        reason, message = cluster.failed[name]
        assert (reason, "that of a CA of this mesh" in message) == ("Invalid", True)


class Away:
    """A key whose HSM is away for the first few signatures."""

    def __init__(self, signer: LocalSigner, failures: int) -> None:
        self._signer = signer
        self._failures = failures

    @property
    def public_key(self) -> PublicKey:
        return self._signer.public_key

    async def sign(self, message: bytes) -> bytes:
        if self._failures:
            self._failures -= 1
            raise KeyServiceUnavailableError("the HSM is away")
        return await self._signer.sign(message)


async def test_an_hsm_that_is_away_fails_no_request() -> None:
    root, signer = pki.root(), local_signer()
    chain = CaChain((ca_certificate(signer.public_key, root),), (root.certificate,))
    cluster = Cluster({"one": named("one")})
    async with running(cluster, authority(chain, Away(signer, 2))) as lines:
        await until(lambda: "one" in cluster.certificates)

    assert cluster.failed == {}
    assert sum("the HSM is away" in line for line in lines) == 1


async def test_a_watch_that_ends_or_breaks_is_taken_up_again() -> None:
    cluster = Cluster()
    async with running(cluster, ca()) as lines:
        for name, end in (("a", None), ("b", ClusterUnavailableError("away"))):
            await until(lambda: cluster.watches)
            cluster.tell(end)
            cluster.requests[name] = named(name)
            await until(lambda name=name: name in cluster.certificates)

    assert sum("csr.not_watched" in line for line in lines) == 1
    assert any("csr.watched_again" in line for line in lines)


async def test_of_several_replicas_one_answers_each_request_and_none_complains() -> None:
    cluster = Cluster({str(number): named(str(number)) for number in range(30)})
    async with running(cluster, ca(), replicas=3) as lines:
        await until(lambda: len(cluster.certificates) == 30)

    assert sum("certificate.issued" in line for line in lines) == 30
    assert not [line for line in lines if "delayed" in line or "refused" in line]


async def test_a_request_that_changed_meanwhile_is_answered_in_its_new_state() -> None:
    cluster, old = Cluster(), named("one")
    async with running(cluster, ca()):
        await until(lambda: cluster.watches)
        cluster.requests["one"] = replace(old, version="2")
        cluster.tell(Change("one", old))
        await asyncio.sleep(0.05)
        assert cluster.certificates == {}
        cluster.put(replace(old, version="2"))
        await until(lambda: "one" in cluster.certificates)


async def test_a_herd_is_signed_with_a_bounded_number_under_way() -> None:
    cluster = Cluster({str(number): named(str(number)) for number in range(100)})
    async with running(cluster, ca()):
        await until(lambda: len(cluster.certificates) == 100)

    assert cluster.most_under_way <= 12


async def test_a_request_that_istiod_gave_up_is_forgotten() -> None:
    cluster = Cluster({"one": named("one")})
    async with running(cluster) as lines:
        await until(lambda: any("csr.delayed" in line for line in lines))
        del cluster.requests["one"]
        cluster.tell(Change("one", None))
        await asyncio.sleep(0.5)

    assert len(lines) == 1


@pytest.mark.parametrize("past", [timedelta(0), timedelta(minutes=1)])
async def test_an_expired_ca_signs_nothing_and_fails_nothing(past: timedelta) -> None:
    root, signer = pki.root(), local_signer()
    certificate = ca_certificate(signer.public_key, root, not_after=NOW - past)
    expired = authority(CaChain((certificate,), (root.certificate,)), signer)
    cluster = Cluster({"one": named("one")})
    async with running(cluster, expired) as lines:
        await until(lambda: any("expired" in line for line in lines))

    assert (cluster.certificates, cluster.failed) == ({}, {})
