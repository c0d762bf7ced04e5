"""A server that drips bytes holds no request for longer than its limit."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.pki import root
from vault_client import kube
from vault_client.errors import DeadlineError, TlsError, UnreachableError
from vault_client.secret import Secret
from vault_client.settings import CaConfigMap
from vault_client.vault import Vault

_PAUSE_SECONDS = 0.05
_ENDS_AFTER = 100
"""Drops: far more than fit into the limit, so that only a client without one sees the end."""

_TOKEN = b'{"data": {"ttl": 60, "renewable": true}}'
_OK = b"HTTP/1.1 200 OK\r\n"
_KEPT = _OK + b"Content-Length: %d\r\n\r\n" % len(_TOKEN) + _TOKEN
_HANDSHAKE = b"\x16\x03\x03\x40\x00"


@contextmanager
def dripping(*answers: bytes) -> Iterator[int]:
    """Give a client each answer at its request, and drip after the last; yield the port.

    Whoever stays until the end of the drops fails the test.
    """
    patient: list[bool] = []
    over = threading.Event()

    def serve(listener: socket.socket) -> None:
        with suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                for answer in answers:
                    connection.recv(64 << 10)
                    connection.sendall(answer)
                for _ in range(_ENDS_AFTER):
                    if over.wait(_PAUSE_SECONDS):
                        return
                    connection.sendall(b"1")
                patient.append(True)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            over.set()
            thread.join(5)
    assert not patient


def vault(scheme: str, port: int) -> Vault:
    address = f"{scheme}://127.0.0.1:{port}"
    return Vault(address, namespace=None, ca_pem=None, timeout_seconds=0.2)


@pytest.mark.parametrize(
    ("scheme", "answer"),
    [
        ("https", _HANDSHAKE),
        ("http", b""),
        ("http", _OK + b"X: "),
        ("http", _OK + b"Content-Length: 4096\r\n\r\n"),
        ("http", _OK + b"Transfer-Encoding: chunked\r\n\r\n800\r\n"),
        ("http", _OK + b"Connection: close\r\n\r\n" + _TOKEN),
    ],
    ids=["handshake", "status", "header", "body", "chunk", "body-without-length"],
)
def test_a_server_that_drips_is_hung_up_on(scheme: str, answer: bytes) -> None:
    with dripping(answer) as port:
        client = vault(scheme, port)
        with pytest.raises(DeadlineError, match="in time"):
            client.look_up(Secret(b"t"))
        client.close()


def test_a_connection_that_was_kept_and_drips_later_is_hung_up_on() -> None:
    with dripping(_KEPT, _OK + b"Connection: close\r\n\r\n" + _TOKEN) as port:
        client = vault("http", port)
        assert client.look_up(Secret(b"t")).seconds == 60
        with pytest.raises(DeadlineError, match="in time"):
            client.look_up(Secret(b"t"))
        client.close()


def test_an_api_server_that_drips_is_hung_up_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube, "_LIMIT_SECONDS", 0.3)
    (tmp_path / "token").write_text("t")
    (tmp_path / "ca.crt").write_bytes(root().pem)
    with dripping(_HANDSHAKE) as port:
        source = CaConfigMap("vault-ca", "istio-system", f"127.0.0.1:{port}", tmp_path)
        with pytest.raises(TlsError, match="does not answer") as caught:
            kube.read_config_map_value(source, "cert")
    assert "check the network path" in caught.value.hint


def test_one_that_hangs_up_itself_is_not_called_late() -> None:
    with dripping(_KEPT) as port:
        client = vault("http", port)
        assert client.look_up(Secret(b"t")).seconds == 60
    with pytest.raises(UnreachableError):
        client.look_up(Secret(b"t"))
    client.close()
