"""Whatever bytes come to the TCP port, before, in and after the handshake, it is hung up on."""

import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from cryptography import x509
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.integration.hsm_plugin.test_tcp import port_of
from tests.support import corpus, http2, tls_clients
from tests.support import plugin as plugins
from tests.support.http2 import Connection, Frame
from tests.support.plugin import SERVING, Plugin
from tests.support.softhsm import SoftHsm
from tests.support.tls_clients import NAME, Identity, TlsSite

_SPIFFE = "spiffe://cluster.local/ns/istio-system/sa/istiod"
_SECONDS = 15.0
_SMALL = [data for data in corpus.entries().values() if len(data) <= 2048]
_FIXTURES = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Target:
    """A plugin with a port, and a client that it lets in."""

    plugin: Plugin
    site: TlsSite
    client: Identity
    port: int

    def context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.site.ca))
        context.set_alpn_protocols(["h2"])
        context.load_cert_chain(self.client.certificate, self.client.key)
        return context

    def hello(self) -> bytes:
        """Return a sound ClientHello."""
        outgoing = ssl.MemoryBIO()
        session = self.context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=NAME)
        with pytest.raises(ssl.SSLWantReadError):
            session.do_handshake()
        return outgoing.read()

    def session(self) -> Connection:
        """Return a connection whose handshake is done and that has said nothing."""
        plain = socket.create_connection(("127.0.0.1", self.port), _SECONDS)
        return Connection(self.context().wrap_socket(plain, server_hostname=NAME))


@pytest.fixture(scope="module")
def target(shared_hsm: SoftHsm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    site = tls_clients.make_site(tmp_path_factory.mktemp("tls"))
    client = site.issue("istiod", x509.UniformResourceIdentifier(_SPIFFE))
    folder = tmp_path_factory.mktemp("run")
    with plugins.running(shared_hsm, folder, arguments=site.arguments(_SPIFFE)) as plugin:
        yield Target(plugin, site, client, port_of(plugin))


@st.composite
def openings(draw: st.DrawFn) -> tuple[int, bytes, bytes]:
    """Return how much of a ClientHello to send, what to overwrite its end with, what follows."""
    kept = draw(st.integers(0, 600))
    return kept, draw(st.binary(max_size=20)), draw(st.sampled_from([b"", *_SMALL]))


@settings(suppress_health_check=_FIXTURES)
@given(opening=openings())
def test_whatever_comes_in_place_of_a_handshake_is_hung_up_on(
    target: Target, opening: tuple[int, bytes, bytes]
) -> None:
    kept, over, after = opening
    with socket.create_connection(("127.0.0.1", target.port), _SECONDS) as client:
        client.sendall(target.hello()[:kept] + over + after)
        client.shutdown(socket.SHUT_WR)
        _read_to_the_end(client)


@settings(suppress_health_check=_FIXTURES)
@given(
    greeting=st.sampled_from([b"", _PREFACE, _PREFACE[:9]]),
    data=st.binary(min_size=1, max_size=64) | st.sampled_from(_SMALL),
)
def test_whatever_comes_after_the_handshake_ends_that_connection_alone(
    target: Target, greeting: bytes, data: bytes
) -> None:
    connection = target.session()
    connection.send_raw(greeting + data)
    connection.read(0)
    connection.close()
    assert target.site.hears_from(target.port, target.client)


def test_a_frame_over_the_limit_is_hung_up_on(target: Target) -> None:
    connection = target.session()
    connection.send_raw(_PREFACE + http2.frame(Frame.SETTINGS, 0))
    connection.send_raw(b"\xff\xff\xff\x00\x00\x00\x00\x00\x01" + bytes(1 << 16))
    connection.read_until_closed()


def test_who_is_silent_in_a_handshake_or_after_it_is_hung_up_on_and_stops_nobody(
    target: Target,
) -> None:
    half = [socket.create_connection(("127.0.0.1", target.port), _SECONDS) for _ in range(20)]
    for number, client in enumerate(half):
        client.sendall(target.hello()[: 5 + 10 * number])
    silent = [target.session() for _ in range(20)]
    for connection in silent[:10]:
        connection.send_raw(_PREFACE[:9])
    assert target.site.hears_from(target.port, target.client)
    for client in half:
        _read_to_the_end(client)
        client.close()
    for connection in silent:
        connection.socket.settimeout(30)
        while connection.read(30):
            pass
        assert connection.is_closed
        connection.close()


def test_after_all_that_the_plugin_serves_and_nothing_was_unforeseen(target: Target) -> None:
    assert target.plugin.health() == SERVING
    assert target.site.hears_from(target.port, target.client)
    assert "Traceback" not in target.plugin.text()
    assert "never retrieved" not in target.plugin.text()
    assert target.plugin.events("front.ended") == []
    assert target.plugin.events("worker.ended") == []


def _read_to_the_end(client: socket.socket) -> None:
    """Return once the server has hung up; TimeoutError when it does not."""
    try:
        while client.recv(1 << 16):
            pass
    except ConnectionError:
        return
