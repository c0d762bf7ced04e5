"""Floods and slow clients on the plugin's socket end at its limits, and others are served on."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from hsm_plugin.server import MAX_MESSAGE_BYTES
from tests.support import floods, http2, softhsm
from tests.support import plugin as plugins
from tests.support.http2 import MAX_CONCURRENT_STREAMS, Connection, Frame
from tests.support.plugin import SERVING, Plugin

METHOD = "/istiohsm.signing.v1.SigningService/ListKeys"
_ENHANCE_YOUR_CALM = 0xB
_MIB = 1 << 20
_MAX_GROWTH = 192 * _MIB
"""What 10,000 calls cost at once; more of them cost no more."""


@pytest.fixture(scope="module")
def flooded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plugin]:
    hsm = softhsm.make_token(tmp_path_factory.mktemp("token"))
    with plugins.running(hsm, tmp_path_factory.mktemp("run")) as plugin:
        yield plugin


@pytest.fixture(autouse=True)
def _serves_on(flooded: Plugin) -> Iterator[None]:
    """After each flood the plugin answers, and its memory is bounded and no file stays open."""
    memory, files = resident_bytes(flooded), open_files(flooded)
    yield
    flooded.await_health(SERVING)
    flooded.wait_until(lambda: open_files(flooded) <= files + 2, "the connections closed")
    assert resident_bytes(flooded) < memory + _MAX_GROWTH
    assert "Traceback" not in flooded.text()


def resident_bytes(plugin: Plugin) -> int:
    pages = (Path("/proc") / str(plugin.pid) / "statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGESIZE")


def open_files(plugin: Plugin) -> int:
    return len(list((Path("/proc") / str(plugin.pid) / "fd").iterdir()))


def connect(plugin: Plugin) -> Connection:
    return http2.connect(plugin.socket)


def test_the_limits_are_told_to_the_client(flooded: Plugin) -> None:
    connection = connect(flooded)
    connection.close()
    assert connection.settings[MAX_CONCURRENT_STREAMS] == 1024
    assert connection.settings[http2.MAX_HEADER_LIST_SIZE] <= 32 << 10


def test_ten_thousand_open_streams_hold_nobody_up(flooded: Plugin) -> None:
    with floods.open_streams(lambda: connect(flooded), METHOD, wanted=10_000) as connections:
        assert len(connections) == 10
        flooded.await_health(SERVING)
        with flooded.channel() as channel:
            call: Any = channel.unary_unary(METHOD)
            call(b"", timeout=20)


def test_a_stream_over_the_limit_is_refused(flooded: Plugin) -> None:
    with floods.open_streams(lambda: connect(flooded), METHOD, wanted=1024) as (connection,):
        connection.open_stream(2 * 1024 + 1, METHOD)
        while not connection.seen[Frame.RST_STREAM] and connection.read():
            pass
        assert connection.seen[Frame.RST_STREAM] or connection.goaway is not None


def test_a_flood_of_pings_is_hung_up_on(flooded: Plugin) -> None:
    connection = floods.pings(connect(flooded), 10_000)
    assert connection.goaway == _ENHANCE_YOUR_CALM
    connection.close()


def test_rapid_resets_and_settings_cost_little(flooded: Plugin) -> None:
    for connection in (
        floods.rapid_resets(connect(flooded), METHOD, 10_000),
        floods.settings(connect(flooded), 10_000),
    ):
        assert flooded.health() == SERVING
        connection.close()


def test_headers_without_end_are_not_gathered(flooded: Plugin) -> None:
    connection = floods.endless_headers(connect(flooded), METHOD, 64 * _MIB)
    connection.close()


@pytest.mark.parametrize(
    ("message", "metadata"),
    [(bytes(MAX_MESSAGE_BYTES + 1), ()), (b"", (("x-large", "x" * (64 << 10)),))],
    ids=["message", "metadata"],
)
def test_what_is_over_a_limit_is_refused(
    flooded: Plugin, message: bytes, metadata: tuple[tuple[str, str], ...]
) -> None:
    with flooded.channel() as channel:
        call: Any = channel.unary_unary(METHOD)
        with pytest.raises(grpc.RpcError) as caught:
            call(message, metadata=metadata, timeout=10)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_client_that_never_greets_is_hung_up_on(flooded: Plugin) -> None:
    silent = [http2.connect(flooded.socket, greet=False) for _ in range(50)]
    silent[0].send_raw(b"PRI * HTTP/2.0\r\n")
    assert flooded.health() == SERVING
    for connection in silent:
        connection.read_until_closed()
