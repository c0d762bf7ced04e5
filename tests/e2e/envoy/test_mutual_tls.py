"""Real Envoys with the bridge's certificates: who is let in, who is refused, and since when."""

import http.client
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.e2e.envoy.conftest import Mesh
from tests.e2e.envoy.sidecars import SERVER, TRUST_DOMAIN, identity
from tests.integration.istiod_ca_bridge.harness import Workload
from tests.support import pki
from tests.support.envoy import TRUST, Envoy, client_sidecar, peer_seen, server_sidecar
from tests.support.plugin import program


def foreign(uri: str, root: pki.Issued, roots: str) -> Workload:
    """Return a certificate of another CA below the root, for one who trusts the roots."""
    ca = pki.intermediate(root, "Another CA")
    name = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = pki.issue("workload", ca, key=key, extensions=[(name, False)])
    return Workload(key, (leaf.pem.decode(), ca.pem.decode(), roots))


def list_of(root: pki.Issued, folder: Path) -> bytes:
    """Return the root's revocation list, made as an operator makes it."""
    (folder / "root.pem").write_bytes(root.pem)
    key = root.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "root.key").write_bytes(key)
    where = ("--root-cert", "root.pem", "--root-key", "root.key", "--out", "issuer-crls.pem")
    subprocess.run(
        [program("istio-hsm"), "ceremony", "crl", *where],
        cwd=folder,
        capture_output=True,
        check=True,
        timeout=60,
    )
    return (folder / "issuer-crls.pem").read_bytes()


@contextmanager
def open_connection(client: Envoy) -> Iterator[http.client.HTTPConnection]:
    host, _, port = client.address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    yield connection
    connection.close()


def is_answered(connection: http.client.HTTPConnection) -> bool:
    connection.request("GET", "/")
    answer = connection.getresponse()
    answer.read()
    return answer.status == http.HTTPStatus.OK


def revoke(mesh: Mesh, workload: Workload) -> None:
    subprocess.run(
        [program("istiod-ca-bridge"), "revoke", f"{workload.leaf.serial_number:x}"],
        env=dict(mesh.bridge.environment),
        capture_output=True,
        check=True,
        timeout=60,
    )


def updated(envoy: Envoy) -> bool:
    """Tell whether the roots were handed over a second time."""
    return envoy.updates(TRUST) == 2


def test_sidecars_with_the_bridge_s_certificates_speak_mutual_tls_and_others_are_refused(
    mesh: Mesh, tmp_path: Path
) -> None:
    bank, cart = mesh.server(tmp_path), mesh.agent(tmp_path, "cart")
    with (
        server_sidecar(tmp_path / "s", bank.files, TRUST_DOMAIN) as server,
        client_sidecar(tmp_path / "c", cart.files, server, identity(SERVER)) as client,
    ):
        assert peer_seen(client) == identity("cart")
        assert (server.failures(), client.failures()) == ({}, {})

        before = cart.held
        cart.renew()
        client.wait_until(lambda: client.serves(cart.held.leaf.serial_number), "the renewed one")
        assert not client.serves(before.leaf.serial_number)
        assert peer_seen(client) == identity("cart")

        other_domain = "spiffe://other.domain/ns/shop/sa/cart"
        for stranger, why in (
            (foreign(other_domain, mesh.root, cart.roots), "fail_verify_san"),
            (foreign(identity("cart"), pki.root(), cart.roots), "fail_verify_error"),
        ):
            cart.files.certify(stranger)
            serial = stranger.leaf.serial_number
            client.wait_until(partial(client.serves, serial), "the stranger")
            refused = server.failures().get(why, 0)
            assert peer_seen(client) is None
            assert server.failures()[why] == refused + 1


def test_a_server_that_is_another_workload_is_refused(mesh: Mesh, tmp_path: Path) -> None:
    thief, cart = mesh.agent(tmp_path, "thief"), mesh.agent(tmp_path, "cart")
    with (
        server_sidecar(tmp_path / "s", thief.files, TRUST_DOMAIN) as server,
        client_sidecar(tmp_path / "c", cart.files, server, identity(SERVER)) as client,
    ):
        assert peer_seen(client) is None
        assert client.failures()["fail_verify_san"] == 1


@pytest.mark.parametrize("mesh", ["rsa-2048"], indirect=True)  # P-256: test_root_rollover.py
def test_a_revoked_workload_s_new_connections_are_refused_and_the_others_work(
    mesh: Mesh, tmp_path: Path
) -> None:
    bank, cart, till = (mesh.agent(tmp_path, name) for name in (SERVER, "cart", "till"))
    with (
        server_sidecar(tmp_path / "s", bank.files, TRUST_DOMAIN) as server,
        client_sidecar(tmp_path / "c", cart.files, server, identity(SERVER)) as client,
        client_sidecar(tmp_path / "t", till.files, server, identity(SERVER)) as other,
    ):
        # What Envoy needs: with the issuing CA's list alone it refuses everybody, also when the
        # root's has ended.
        mesh.bridge.await_log("crl.not_published")
        assert not mesh.crl.exists()
        assert peer_seen(client) == identity("cart")
        ours = (mesh.revocations / "ca-crl.pem").read_bytes()
        ended = pki.crl(mesh.root, valid_until=pki.MOMENT - timedelta(minutes=1))
        for number, useless in enumerate((ours, ours + ended.public_bytes(Encoding.PEM))):
            bank.files.trust(bank.roots)
            server.wait_until(lambda: peer_seen(client) is not None, "let in without lists")
            lists = tmp_path / f"useless-{number}.pem"
            lists.write_bytes(useless)
            bank.files.trust(bank.roots, crl=lists)
            server.wait_until(lambda: peer_seen(client) is None, "nobody let in")

        # The root's list beside it, none revoked: traffic flows.
        (mesh.revocations / "issuer-crls.pem").write_bytes(list_of(mesh.root, tmp_path))
        mesh.bridge.wait_until(mesh.crl.exists, "the published lists")
        for party in (bank, cart, till):
            party.trust()
        server.wait_until(lambda: peer_seen(client) == identity("cart"), "one let in")
        for envoy in (client, other):
            envoy.wait_until(partial(updated, envoy), "the lists at the clients")
        assert peer_seen(other) == identity("till")
        assert peer_seen(client) == identity("cart")

        # Revoked: the file changes under Envoy, and nobody tells it.
        with open_connection(client) as connection:
            assert is_answered(connection)
            revoke(mesh, cart.held)
            server.wait_until(lambda: peer_seen(client) is None, "the revoked one refused")
            assert is_answered(connection)  # what was open stays open
        assert peer_seen(other) == identity("till")
        cart.hand_over(cart.ask(None))  # by its token it gets another
        client.wait_until(lambda: peer_seen(client) == identity("cart"), "the new one let in")

        revoke(mesh, bank.held)
        client.wait_until(lambda: peer_seen(client) is None, "the revoked server refused")
        assert client.failures()["fail_verify_error"]
