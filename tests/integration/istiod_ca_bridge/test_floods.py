"""Hostile clients of the CA: floods end at its limits, nonsense is told so, others are served."""

import contextlib
import os
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from istio_hsm_proto import istio_ca_pb2 as ca
from tests.integration.istiod_ca_bridge import harness
from tests.integration.istiod_ca_bridge.conftest import Mesh, token_settings
from tests.support import corpus, floods, http2
from tests.support.http2 import MAX_CONCURRENT_STREAMS, Connection
from tests.support.wire_fuzz import requests

METHOD = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
_ENHANCE_YOUR_CALM = 0xB
_MIB = 1 << 20
_MAX_GROWTH = 384 * _MIB
"""What 10,000 calls cost at once; more of them cost no more."""
_CLEAN = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}


@dataclass(frozen=True, slots=True)
class Flooded:
    """A serving bridge of these tests' own."""

    bridge: harness.Bridge
    tokens: harness.TokenIssuer

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.bridge.address.rpartition(":")
        return host, int(port)

    def connect(self, *, greet: bool = True) -> Connection:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        return http2.connect(self.address, tls=context, greet=greet)

    def resident_bytes(self) -> int:
        pages = (Path("/proc") / str(self.bridge.process.pid) / "statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGESIZE")

    def open_files(self) -> int:
        return len(list((Path("/proc") / str(self.bridge.process.pid) / "fd").iterdir()))

    def issues(self) -> bool:
        """Tell whether a sound caller gets a certificate now."""
        with contextlib.suppress(grpc.RpcError):
            harness.create_certificate(self.bridge, token=self.tokens.token())
            return True
        return False


@pytest.fixture(scope="module")
def flooded(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flooded]:
    folder = tmp_path_factory.mktemp("flooded")
    tokens = harness.token_issuer()
    with harness.running_bridge(
        folder, mesh.plugin.socket, token_settings(folder, tokens)
    ) as bridge:
        harness.bring_to_serving(bridge, mesh.plugin, mesh.root)
        yield Flooded(bridge, tokens)


@pytest.fixture(autouse=True)
def _serves_on(flooded: Flooded) -> Iterator[None]:
    """After each flood a certificate is issued; memory is bounded, no connection stays."""
    memory, files = flooded.resident_bytes(), flooded.open_files()
    yield
    flooded.bridge.wait_until(flooded.issues, "a certificate")
    flooded.bridge.wait_until(lambda: flooded.open_files() <= files + 4, "the connections closed")
    assert flooded.resident_bytes() < memory + _MAX_GROWTH
    assert "Traceback" not in flooded.bridge.log
    assert "request.failed" not in flooded.bridge.log


def test_ten_thousand_open_streams_hold_nobody_up_for_long(flooded: Flooded) -> None:
    with floods.open_streams(flooded.connect, METHOD, wanted=10_000) as connections:
        assert connections[0].settings[MAX_CONCURRENT_STREAMS] == 256
        assert len(connections) == 40
        flooded.bridge.wait_until(flooded.issues, "a certificate during the flood")


def test_a_flood_of_pings_is_hung_up_on(flooded: Flooded) -> None:
    connection = floods.pings(flooded.connect(), 10_000)
    assert connection.goaway == _ENHANCE_YOUR_CALM
    connection.close()


def test_rapid_resets_and_settings_cost_little(flooded: Flooded) -> None:
    for connection in (
        floods.rapid_resets(flooded.connect(), METHOD, 10_000),
        floods.settings(flooded.connect(), 10_000),
        floods.endless_headers(flooded.connect(), METHOD, 32 * _MIB),
    ):
        connection.close()


def test_half_open_and_silent_clients_are_hung_up_on(flooded: Flooded) -> None:
    greeted_by_tls = [flooded.connect(greet=False) for _ in range(20)]
    half_open = [socket.create_connection(flooded.address, 10) for _ in range(100)]
    assert flooded.issues()
    for connection in greeted_by_tls:
        connection.read_until_closed()
    for client in half_open:
        client.close()


@pytest.mark.parametrize(
    ("message", "metadata"),
    [(bytes((64 << 10) + 1), ()), (b"", (("x-large", "x" * (128 << 10)),))],
    ids=["message", "metadata"],
)
def test_what_is_over_a_limit_is_refused(
    flooded: Flooded, message: bytes, metadata: tuple[tuple[str, str], ...]
) -> None:
    with harness.ca_channel(flooded.bridge) as channel:
        call: Any = channel.unary_unary(METHOD)
        with pytest.raises(grpc.RpcError) as caught:
            call(message, metadata=metadata, timeout=10)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


_REQUEST = ca.DESCRIPTOR.message_types_by_name["IstioCertificateRequest"]
_TOKENS = [
    data.decode()
    for data in corpus.entries().values()
    if len(data) <= 8192 and data.isascii() and data.decode().isprintable()
]


@pytest.fixture(scope="module")
def channel(flooded: Flooded) -> Iterator[grpc.Channel]:
    with harness.ca_channel(flooded.bridge) as channel:
        yield channel


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=requests(_REQUEST, (b"",)))
def test_every_answer_to_a_known_caller_is_one_of_the_contract(
    flooded: Flooded, channel: grpc.Channel, data: bytes
) -> None:
    assert status(channel, data, f"Bearer {flooded.tokens.token()}") in _CLEAN


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    token=st.sampled_from(_TOKENS), scheme=st.sampled_from(["Bearer ", "Basic ", "", "Bearer  "])
)
def test_every_odd_token_is_unauthenticated(channel: grpc.Channel, token: str, scheme: str) -> None:
    assert status(channel, b"", scheme + token) is grpc.StatusCode.UNAUTHENTICATED


def status(channel: grpc.Channel, request: bytes, authorization: str) -> grpc.StatusCode:
    call: Any = channel.unary_unary(METHOD)
    try:
        call(request, metadata=(("authorization", authorization),), timeout=10)
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return grpc.StatusCode.OK
