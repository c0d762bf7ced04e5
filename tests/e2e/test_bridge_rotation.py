"""Two bridges with the documented rights, the leader killed at every state: no failed handshake.

One story, told once: from nothing to serving, and a rotation of key and root.
"""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from istio_hsm_proto import signing_v1_pb2
from istiod_ca_bridge import store
from istiod_ca_bridge.metrics import State
from istiod_ca_bridge.rotation import Phase
from istiod_ca_bridge.store import (
    CERTIFICATE_SECRET,
    CSR_SECRET,
    KEY_SECRET,
    NEXT,
    PREVIOUS_KEY_SECRET,
    RENEWAL_SECRET,
    ROTATION_SECRET,
)
from tests.e2e import bridge_replicas
from tests.e2e.bridge_replicas import Replicas
from tests.integration.istiod_ca_bridge import harness
from tests.support import pki
from tests.support.kube import KubeCluster
from tests.support.mutual_tls import handshake

_LONG_AGO = f"{datetime.now(UTC) - timedelta(days=200):%FT%TZ}"


def key_ids(site: Replicas) -> list[str]:
    """Return the ids of the signing keys in the token."""
    with site.hsm.signing() as signing:
        reply = signing.ListKeys(signing_v1_pb2.ListKeysRequest(), timeout=10)
    return [entry.key.key_id.decode() for entry in reply.keys]


def next_root() -> pki.Issued:
    key = pki.issue("x").key
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return pki.issue(
        "Next Root", is_ca=True, usage=pki.CA_USAGE, key=key, extensions=((identifier, False),)
    )


@pytest.mark.timeout(400)
def test_a_mesh_s_whole_life_with_the_leader_killed_at_every_state(
    kube: KubeCluster, namespace: str, tmp_path: Path
) -> None:
    with bridge_replicas.replicas(kube, namespace, tmp_path) as site:
        come_to_life(site)
        renew(site)
        before = site.workload()
        rotate(site, before, tmp_path)

        assert every_state() <= site.killed_at


def every_state() -> set[str]:
    """Return the names of all: each Secret that a bridge writes is a state, and each phase."""
    written = {
        name for name in vars(store).values() if isinstance(name, str) and "istio-ca" in name
    }
    written |= {NEXT.key, NEXT.csr}
    of_others = {CERTIFICATE_SECRET, ROTATION_SECRET}  # the operator's; what holds the phase
    states = {state.value for state in State} | {phase.value for phase in Phase}
    return written - of_others | states


def come_to_life(site: Replicas) -> None:
    site.start()
    site.start()
    site.kill_leader_when(site.has(KEY_SECRET), KEY_SECRET)
    site.kill_leader_when(site.has(CSR_SECRET), CSR_SECRET)
    site.kill_leader_when(site.says("Wait until the CA certificate secret"), State.WAITING.value)
    csr = site.csr("istio-ca-cert-csr")
    record = site.secret("istio-ca-encrypted-key") or {}
    assert key_ids(site) == [record["key-id"].decode()]
    site.offer("istio-ca-cert", harness.signed_ca(csr, site.root))
    site.await_serving()

    site.kill_leader_when(site.says("health.serving"), State.SERVING.value)
    site.workload()  # the follower serves, whoever leads
    site.await_serving()
    assert site.secret("istio-ca-encrypted-key") == record


def renew(site: Replicas) -> None:
    """Have the certificate be in its last third: of 80 minutes, 60 are over."""
    first = site.csr(CSR_SECRET)
    site.offer(
        CERTIFICATE_SECRET, harness.signed_ca(first, site.root, lifetime=timedelta(minutes=20))
    )
    site.kill_leader_when(site.has(RENEWAL_SECRET), RENEWAL_SECRET)
    csr = site.csr(RENEWAL_SECRET)
    assert csr.public_key() == first.public_key()
    site.offer(CERTIFICATE_SECRET, harness.signed_ca(csr, site.root))
    site.wait_until(lambda: site.secret(RENEWAL_SECRET) is None, "cleared away")


def rotate(site: Replicas, before: harness.Workload, folder: Path) -> None:
    old_key = site.secret("istio-ca-encrypted-key") or {}
    root = next_root()

    assert "started" in site.rotation("start").stdout
    for state in (NEXT.key, NEXT.csr):
        site.kill_leader_when(site.has(state), state, phase=Phase.PREPARE)
    csr = site.csr("istio-ca-cert-csr-next")
    chain = harness.signed_ca(csr, root)
    site.offer("istio-ca-cert-next", chain)
    site.wait_until(
        lambda: "refuses the chain" in site.conditions().get("Rotating", {}).get("message", ""),
        "the reason: the root is not imported",
    )
    assert "refuses the chain" in json.loads(site.rotation("status").stdout)["waits-for"]
    harness.prepare(site.hsm, root)

    # Both roots are trusted, the old key signs.
    site.kill_leader_when(site.rotation_has("phase", "distribute"), phase=Phase.DISTRIBUTE)
    site.kill_leader_when(site.rotation_has("distributed-at"), phase=Phase.DISTRIBUTE)
    both = both_roots(site, root)
    during = site.workload()
    assert set(x509.load_pem_x509_certificates(during.chain[-1].encode())) == both
    assert_shakes_hands(before, during, folder)
    renewed = site.workload(by=before)
    refusal = site.rotation("activate")
    assert refusal.returncode == 1
    assert "trust the old root only" in refusal.stderr
    assert site.secret("istio-ca-encrypted-key") == old_key

    # The next key signs, both roots are trusted.
    site.patch("istio-ca-rotation", **{"distributed-at": _LONG_AGO})
    with site.asking("activate"):
        site.kill_leader_when(site.rotation_has("phase", "activate"), phase=Phase.ACTIVATE)
    site.kill_leader_when(site.has(PREVIOUS_KEY_SECRET), PREVIOUS_KEY_SECRET)
    site.kill_leader_when(site.rotation_has("phase", "overlap"), phase=Phase.OVERLAP)
    site.wait_until(lambda: site.secret("istio-ca-encrypted-key-next") is None, "cleared away")
    following = site.secret("istio-ca-encrypted-key") or {}
    assert following["key-id"] != old_key["key-id"]
    assert site.secret("istio-ca-encrypted-key-previous") == old_key
    assert (site.secret("istio-ca-cert") or {})["cert-chain.pem"] == chain
    site.await_serving()
    after = issued_under(site, root)
    for older in (during, renewed):
        assert_shakes_hands(older, after, folder)
    assert_shakes_hands(site.workload(by=during), renewed, folder)
    assert handshake(before, after, folder) is not None  # why activation waited

    last = retire(site, root)
    assert_shakes_hands(after, last, folder)
    assert handshake(during, last, folder) is not None  # why retirement waited


def retire(site: Replicas, root: pki.Issued) -> harness.Workload:
    """Have the old root be trusted no more, and its key be gone; return a workload of the new."""
    following = site.secret(KEY_SECRET) or {}
    assert site.rotation("retire", "--destroy-old-key").returncode == 1
    assert len(key_ids(site)) == 2
    site.patch("istio-ca-rotation", **{"activated-at": _LONG_AGO})
    with site.asking("retire", "--destroy-old-key"):
        site.kill_leader_when(site.rotation_has("phase", "retire"), phase=Phase.RETIRE)
    site.kill_leader_when(lambda: not site.rotation_has("phase")(), "the end")
    site.await_serving()
    assert key_ids(site) == [following["key-id"].decode()]
    assert site.secret("istio-ca-rotation") is None
    last = issued_under(site, root)
    assert last.chain[-1].encode() == root.pem
    site.wait_until(lambda: published(site) == root.pem.decode(), "the new root alone")
    site.await_condition("Rotating", "Idle")
    return last


def both_roots(site: Replicas, root: pki.Issued) -> set[x509.Certificate]:
    both = {site.root.certificate, root.certificate}
    site.wait_until(
        lambda: set(x509.load_pem_x509_certificates(published(site).encode())) == both, "both roots"
    )
    site.await_serving()
    return both


def published(site: Replicas) -> str:
    """Return the roots that the namespace's sidecars mount."""
    found = site.core.read_namespaced_config_map("istio-ca-root-cert", site.namespace)
    return (found.data or {})["root-cert.pem"]


def issued_under(site: Replicas, root: pki.Issued) -> harness.Workload:
    """Return a workload of the next key, as soon as there is one."""
    found: list[harness.Workload] = []

    def is_new() -> bool:
        found.append(site.workload())
        ca = x509.load_pem_x509_certificate(found[-1].chain[1].encode())
        return ca.issuer == root.certificate.subject

    site.wait_until(is_new, "a certificate of the next key")
    return found[-1]


def assert_shakes_hands(one: harness.Workload, other: harness.Workload, folder: Path) -> None:
    assert handshake(one, other, folder) is None
    assert handshake(other, one, folder) is None
