"""The CA key and its root are rotated under traffic between two Envoys: no handshake fails.

Revocation lists are heeded all the while, so each CA and each root needs one in time.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from tests.e2e import bridge_replicas
from tests.e2e.bridge_replicas import Replicas
from tests.e2e.envoy.node import Node
from tests.e2e.envoy.sidecars import SERVER, TRUST_DOMAIN, agent, identity
from tests.integration.istiod_ca_bridge import cluster_harness, harness
from tests.support import pki
from tests.support.envoy import client_sidecar, peer_seen, server_sidecar
from tests.support.kube import KubeCluster

_LONG_AGO = f"{datetime.now(UTC) - timedelta(days=200):%FT%TZ}"
_CLIENT = "cart"


@contextmanager
def site_with_lists(kube: KubeCluster, namespace: str, folder: Path) -> Iterator[Replicas]:
    """A serving bridge that publishes revocation lists, the root's among them."""
    with bridge_replicas.replicas(kube, namespace, folder, {"CA_CRL": "true"}) as site:
        cluster_harness.grant_crl(kube, namespace)
        site.start()
        csr = site.csr("istio-ca-cert-csr")
        site.offer("istio-ca-cert", harness.signed_ca(csr, site.root))
        site.await_serving()
        site.wait_until(site.has("istio-ca-revocations"), "the bridge's own list")
        add_lists(site, site.root)
        yield site


def add_lists(site: Replicas, *roots: pki.Issued) -> None:
    """Write the roots' lists where an operator writes them."""
    lists = b"".join(map(pki.crl_pem, roots)).decode()
    site.patch("istio-ca-revocations", **{"issuer-crls.pem": lists})


def asker(site: Replicas, account: str) -> Callable[[harness.Workload | None], harness.Workload]:
    def ask(held: harness.Workload | None) -> harness.Workload:
        token = None
        if held is None:
            token = site.kube.service_account_token(site.namespace, account, audiences=["istio-ca"])
        bridge = next(iter(site.running.values()))
        return harness.create_certificate(bridge, token=token, client=held)

    return ask


@pytest.mark.timeout(240)
def test_a_root_is_rolled_over_and_no_handshake_between_envoys_fails(
    kube: KubeCluster, namespace: str, tmp_path: Path
) -> None:
    for account in (SERVER, _CLIENT):
        kube.create_service_account(namespace, account)
    crl = tmp_path / "mount" / "ca-crl.pem"
    crl.parent.mkdir()
    with site_with_lists(kube, namespace, tmp_path / "site") as site:
        node = Node(site.core, namespace, crl)
        site.wait_until(lambda: node.mount() == 2, "both lists")
        node.agents = [agent(tmp_path / name, asker(site, name), crl) for name in (SERVER, _CLIENT)]
        bank, cart = node.agents
        first = cart.held
        with (
            server_sidecar(tmp_path / "s", bank.files, TRUST_DOMAIN) as server,
            client_sidecar(
                tmp_path / "c", cart.files, server, identity(SERVER, namespace)
            ) as client,
        ):
            with node.at_work(client):
                site.wait_until(lambda: node.renewals > 0, "a renewal")
                roll_over(site, node)
                done = node.renewals
                site.wait_until(lambda: node.renewals > done + 1, "life after it")
            assert node.troubles == []
            assert set(node.seen) == {identity(_CLIENT, namespace)}
            assert (server.failures(), client.failures()) == ({}, {})
            assert server.counters("ssl.handshake")["handshake"] >= node.seen.total() > 100

            # What would have failed does fail: a certificate under the old root.
            cart.files.certify(first)
            client.wait_until(lambda: client.serves(first.leaf.serial_number), "the old one")
            assert peer_seen(client) is None
            assert server.failures() == {"fail_verify_error": 1}


def roll_over(site: Replicas, node: Node) -> None:
    """Rotate key and root as an operator does; the waits are over once every agent renewed."""
    key = pki.issue("x").key
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    root = pki.issue(
        "Next Root", is_ca=True, usage=pki.CA_USAGE, key=key, extensions=((identifier, False),)
    )
    assert "started" in site.rotation("start").stdout
    csr = site.csr("istio-ca-cert-csr-next")
    harness.prepare(site.hsm, root)
    site.offer("istio-ca-cert-next", harness.signed_ca(csr, root))

    # Nobody could prove that a leaf of the next key is not revoked: it must not sign yet.
    site.wait_until(
        lambda: "list of revocations" in site.conditions().get("Rotating", {}).get("message", ""),
        "the want of the next root's list",
    )
    add_lists(site, site.root, root)
    site.wait_until(site.rotation_has("distributed-at"), "distributed")
    both = {site.root.certificate, root.certificate}
    await_renewals(site, node, lambda workload: roots(workload) == both, "both roots")
    site.wait_until(lambda: node.lists == 4, "lists of both CAs and both roots")

    site.patch("istio-ca-rotation", **{"distributed-at": _LONG_AGO})
    assert site.rotation("activate").stdout.startswith("done"), site.log
    await_renewals(site, node, lambda workload: is_below(workload, root), "the next key's leaves")
    site.wait_until(site.rotation_has("phase", "overlap"), "overlap")
    site.wait_until(lambda: site.secret("istio-ca-encrypted-key-next") is None, "cleared away")

    site.patch("istio-ca-rotation", **{"activated-at": _LONG_AGO})
    retired = site.rotation("retire", "--destroy-old-key")
    assert retired.stdout.startswith("done"), retired.stderr + site.log
    site.wait_until(lambda: not site.rotation_has("phase")(), "the end")
    await_renewals(
        site, node, lambda workload: roots(workload) == {root.certificate}, "the new root alone"
    )
    site.wait_until(lambda: node.lists == 2, "lists of the new CA and its root")


def await_renewals(
    site: Replicas, node: Node, holds: Callable[[harness.Workload], bool], what: str
) -> None:
    site.wait_until(lambda: all(holds(it.held) for it in node.agents), what)


def roots(workload: harness.Workload) -> set[x509.Certificate]:
    return set(x509.load_pem_x509_certificates(workload.chain[-1].encode()))


def is_below(workload: harness.Workload, root: pki.Issued) -> bool:
    ca = x509.load_pem_x509_certificate(workload.chain[1].encode())
    return ca.issuer == root.certificate.subject
