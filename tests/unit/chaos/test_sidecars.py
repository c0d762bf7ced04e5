"""A sidecar looks at what it got."""

import threading
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from chaos.sidecars import NO_REPLICA, Attempt, Sidecar, Tally, faults_of
from tests.integration.istiod_ca_bridge.harness import Workload
from tests.support import pki
from tests.support.pki import Issued

CALLER = "spiffe://cluster.local/ns/shop/sa/cart"


@pytest.fixture(scope="module")
def root() -> Issued:
    return pki.root()


@pytest.fixture(scope="module")
def ca(root: Issued) -> Issued:
    return pki.intermediate(root)


def workload(ca: Issued, root: Issued, *, names: str = CALLER, **changes: object) -> Workload:
    key = ec.generate_private_key(ec.SECP256R1())
    uri = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(names)])
    leaf = pki.issue("cart", ca, key=key, extensions=[(uri, True)], **changes)  # type: ignore[arg-type] # by name
    return Workload(key, tuple(it.pem.decode() for it in (leaf, ca, root)))


def faults(got: Workload, ca: Issued) -> list[str]:
    return faults_of(got, CALLER, ca.certificate, datetime.now(UTC))


def test_a_certificate_as_it_should_be_has_no_fault(ca: Issued, root: Issued) -> None:
    assert faults(workload(ca, root), ca) == []


def test_a_certificate_for_another_key_is_seen(ca: Issued, root: Issued) -> None:
    got = workload(ca, root)
    other = Workload(ec.generate_private_key(ec.SECP256R1()), got.chain)
    assert faults(other, ca) == ["it is for another key"]


def test_another_identity_is_seen(ca: Issued, root: Issued) -> None:
    [fault] = faults(workload(ca, root, names=f"{CALLER}-2"), ca)
    assert fault.startswith("it names")


def test_a_certificate_that_is_not_valid_now_is_seen(ca: Issued, root: Issued) -> None:
    later = datetime.now(UTC) + timedelta(minutes=5)
    [fault] = faults(workload(ca, root, valid_from=later), ca)
    assert fault.startswith("valid ")


def test_a_certificate_of_another_ca_is_seen(ca: Issued, root: Issued) -> None:
    other = pki.intermediate(root)
    assert "the CA did not sign it" in faults(workload(other, root), ca)


class Nobody:
    """A Service without a ready replica."""

    def any(self) -> str | None:
        return None


def test_a_sidecar_that_finds_nobody_comes_again_until_its_patience_ends(
    ca: Issued, root: Issued, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chaos.sidecars._PATIENCE_SECONDS", 0.3)
    stop, tally = threading.Event(), Tally()
    sidecar = Sidecar(CALLER, "token", root.pem, ca.certificate, Nobody(), tally, 0.0, stop)
    thread = threading.Thread(target=sidecar.run)
    thread.start()
    stop.wait(0.3)
    stop.set()
    thread.join(10)
    assert not thread.is_alive()
    assert {it.status for it in tally.attempts} == {NO_REPLICA}
    assert len(tally.attempts) > 1
    assert tally.lost == [f"{CALLER}: {NO_REPLICA} to the very end"]


def test_the_last_failure_and_who_answered_are_told_from_the_attempts() -> None:
    tally = Tally(
        [
            Attempt(1.0, 0.1, "OK", "a"),
            Attempt(2.0, 0.1, "UNAVAILABLE", "b"),
            Attempt(3.0, 0.1, "OK", "a"),
        ]
    )
    assert tally.last_failure(0.5) == 2.0
    assert tally.last_failure(2.5) == 2.5
    assert tally.last_answer_from("a", 2.5)
    assert not tally.last_answer_from("a", 3.5)
    assert not tally.last_answer_from("b", 0.5)
