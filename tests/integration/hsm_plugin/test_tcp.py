"""The TCP port: TLS 1.3, a client certificate, and a name on the list; anything else is refused."""

import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import grpc
import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from istio_hsm_proto import kms_istio_v1_pb2 as kms
from istio_hsm_proto.kms_istio_v1_pb2_grpc import KeyManagementServiceStub
from tests.support import plugin as plugins
from tests.support import tls_clients
from tests.support.plugin import SERVING, Plugin
from tests.support.softhsm import SoftHsm
from tests.support.tls_clients import Identity, TlsSite

SPIFFE = "spiffe://cluster.local/ns/istio-system/sa/istiod"
DNS = "istiod.istio-system.svc"
COMMON = "legacy-client"
URI_SAN, DNS_SAN = x509.UniformResourceIdentifier(SPIFFE), x509.DNSName(DNS)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> TlsSite:
    return tls_clients.make_site(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def served(
    shared_hsm: SoftHsm, site: TlsSite, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Plugin]:
    """A plugin with a port beside its socket."""
    arguments = site.arguments(f"{SPIFFE},{DNS}", COMMON)
    folder = tmp_path_factory.mktemp("run")
    with plugins.running(shared_hsm, folder, arguments=arguments) as plugin:
        yield plugin


@pytest.fixture(scope="module")
def port(served: Plugin) -> int:
    return port_of(served)


@pytest.fixture(scope="module")
def istiod(site: TlsSite) -> Identity:
    return site.issue("istiod", URI_SAN)


def port_of(plugin: Plugin) -> int:
    """Return the port that the log tells."""
    lines = [entry["message"] for entry in plugin.events("server.listening")]
    [line] = [line for line in lines if "127.0.0.1:" in line]
    return int(line.rpartition(":")[2])


def make_kek(channel: grpc.Channel) -> bytes:
    """Return the id of a KEK, asked for over the channel."""
    stub = KeyManagementServiceStub(channel)
    return stub.GenerateKEK(kms.GenerateKEKRequest(kek_kid=b"tcp"), timeout=10).kek_kid


@pytest.mark.parametrize(
    ("name", "sans", "identity"),
    [
        ("istiod", [URI_SAN], SPIFFE),
        ("istiod", [DNS_SAN], DNS),
        ("istiod", [x509.DNSName("other.svc"), DNS_SAN], DNS),
        (COMMON, [], COMMON),
    ],
    ids=["URI", "DNS", "second DNS", "common name"],
)
def test_a_client_on_the_list_is_served_and_logged(
    served: Plugin, site: TlsSite, port: int, name: str, sans: list[x509.GeneralName], identity: str
) -> None:
    with site.channel(port, site.issue(name, *sans)) as channel:
        assert make_kek(channel) == b"tcp"
        with pytest.raises(grpc.RpcError):
            KeyManagementServiceStub(channel).GenerateDEK(
                kms.GenerateDEKRequest(kek_kid=b"none"), timeout=10
            )
    assert served.events("connection.admitted")[-1]["identity"] == identity
    assert served.events("rpc.refused")[-1]["caller"] == {"kind": "remote", "identity": identity}


def test_the_socket_serves_beside_the_port(served: Plugin) -> None:
    with served.channel() as channel:
        assert make_kek(channel) == b"tcp"


def test_a_client_without_a_certificate_is_refused(site: TlsSite, port: int) -> None:
    assert not site.hears_from(port, None)


def test_a_client_under_another_root_is_refused(site: TlsSite, port: int) -> None:
    stranger = site.issue("istiod", URI_SAN, issuer=tls_clients.other_root())
    assert not site.hears_from(port, stranger)


def test_an_expired_client_is_refused(site: TlsSite, port: int) -> None:
    assert not site.hears_from(port, site.issue("istiod", URI_SAN, seconds=-60))


def test_a_servers_certificate_is_no_clients(site: TlsSite, port: int) -> None:
    server = site.issue("istiod", URI_SAN, usage=ExtendedKeyUsageOID.SERVER_AUTH)
    assert not site.hears_from(port, server)


@pytest.mark.parametrize(
    ("name", "sans"),
    [
        ("somebody", []),
        ("istiod", [x509.UniformResourceIdentifier(SPIFFE + "x")]),
        ("istiod", [x509.UniformResourceIdentifier(SPIFFE.upper())]),
        ("istiod", [x509.DNSName("*.istio-system.svc")]),
        (COMMON, [x509.DNSName("other.svc")]),
        ("istiod", [x509.RFC822Name(DNS)]),
    ],
    ids=["nobody", "longer", "case", "wildcard", "common name beside a SAN", "another kind"],
)
def test_a_client_that_is_not_on_the_list_is_refused_and_its_names_logged(
    served: Plugin, site: TlsSite, port: int, name: str, sans: list[x509.GeneralName]
) -> None:
    before = len(served.events("connection.refused"))
    assert not site.hears_from(port, site.issue(name, *sans))
    served.await_event("connection.refused", before + 1)
    assert name in served.events("connection.refused")[-1]["names"]


def test_tls_1_2_is_refused(site: TlsSite, port: int, istiod: Identity) -> None:
    assert site.hears_from(port, istiod)
    assert not site.hears_from(port, istiod, most=ssl.TLSVersion.TLSv1_2)


def test_what_is_not_http2_is_refused(site: TlsSite, port: int, istiod: Identity) -> None:
    assert not site.hears_from(port, istiod, protocol="http/1.1")


def test_plaintext_is_refused(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), 10) as client:
        client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        answer = client.recv(1000)
    assert b"HTTP" not in answer
    assert answer[:1] in (b"", b"\x15")  # nothing, or a TLS alert


def test_who_sends_nothing_is_cut_off_and_stops_nobody(
    site: TlsSite, port: int, istiod: Identity
) -> None:
    slow = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(50)]
    try:
        slow[0].sendall(b"\x16\x03\x01")  # the begin of a handshake
        assert site.hears_from(port, istiod)
        assert {client.recv(1) for client in slow} == {b""}
    finally:
        for client in slow:
            client.close()


def test_one_address_has_a_bounded_number_of_handshakes(served: Plugin, port: int) -> None:
    held = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(80)]
    try:
        served.wait_until(
            lambda: any(
                "too many handshakes" in entry["message"]
                for entry in served.events("connection.refused")
            ),
            "a refusal",
        )
    finally:
        for client in held:
            client.close()


def test_a_connection_ends_with_its_certificate(site: TlsSite, port: int) -> None:
    with site.channel(port, site.issue("istiod", URI_SAN, seconds=2.5)) as channel:
        assert make_kek(channel) == b"tcp"
        time.sleep(3)
        with pytest.raises(grpc.RpcError) as caught:
            make_kek(channel)
    assert cast("grpc.Call", caught.value).code() is grpc.StatusCode.UNAVAILABLE


def test_changed_files_are_served_with_and_bad_ones_are_not(
    shared_hsm: SoftHsm, folder: Path, tmp_path: Path
) -> None:
    site = tls_clients.make_site(tmp_path / "tls")
    old = site.issue("istiod", URI_SAN)
    with plugins.running(
        shared_hsm, folder, arguments=[*site.arguments(SPIFFE), "--disable-socket"], wanted=None
    ) as plugin:
        plugin.await_event("token.connected")
        port = port_of(plugin)
        assert not plugin.socket.exists()
        with site.channel(port, old) as kept:
            assert make_kek(kept) == b"tcp"

            site.server.key.chmod(0o644)
            plugin.await_event("tls.refused")
            assert "0644" in plugin.events("tls.refused")[0]["message"]
            assert site.hears_from(port, old)
            site.server.key.chmod(0o400)
            plugin.await_event("tls.loaded")
            assert make_kek(kept) == b"tcp"

            root = tls_clients.other_root()
            site.ca.write_bytes(root.pem)
            made = tls_clients.renew_server(site, root)
            plugin.wait_until(
                lambda: _served_certificate(port) == made.der and not site.hears_from(port, old),
                "the new files in use",
            )
            with pytest.raises(grpc.RpcError):
                make_kek(kept)
        assert site.hears_from(port, site.issue("istiod", URI_SAN, issuer=root))
        assert plugin.stop() == 0


def _served_certificate(port: int) -> bytes:
    return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(("127.0.0.1", port)))


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (lambda site: site.server.key.chmod(0o440 | 0o004), "mode 0444"),
        (lambda site: site.server.key.chmod(0o460), "mode 0460"),
        (lambda site: site.ca.unlink(), "cannot be read"),
        (lambda site: site.ca.write_text("no certificate"), "holds no certificates"),
        (lambda site: site.server.certificate.write_text("none"), "no PEM certificate and its key"),
        (
            lambda site: site.server.certificate.write_bytes(
                site.issue("other").certificate.read_bytes()
            ),
            "no PEM certificate and its key",
        ),
    ],
    ids=["key for all", "key written by group", "no CA", "bad CA", "bad chain", "another's key"],
)
def test_files_that_cannot_be_served_with_end_the_start(
    shared_hsm: SoftHsm, folder: Path, tmp_path: Path, spoil: object, cause: str
) -> None:
    site = tls_clients.make_site(tmp_path / "tls")
    assert callable(spoil)
    spoil(site)
    with plugins.running(
        shared_hsm, folder, arguments=site.arguments(SPIFFE), wanted=None
    ) as plugin:
        assert plugin.wait() == 2
        assert cause in plugin.text()
        assert "hint:" in plugin.text()
        assert "Traceback" not in plugin.text()
        assert "PRIVATE KEY" not in plugin.text()
        assert not plugin.socket.exists()


def test_a_port_in_use_ends_the_start(shared_hsm: SoftHsm, folder: Path, site: TlsSite) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        arguments = [*site.arguments(SPIFFE), "--port", str(other.getsockname()[1])]
        with plugins.running(shared_hsm, folder, arguments=arguments, wanted=None) as plugin:
            assert plugin.wait() == 2
            assert "cannot listen on 127.0.0.1" in plugin.text()
            assert not plugin.socket.exists()


def test_the_plugin_still_serves(served: Plugin) -> None:
    assert served.health() == SERVING
    assert "Traceback" not in served.text()
    assert served.events("front.ended") == []
