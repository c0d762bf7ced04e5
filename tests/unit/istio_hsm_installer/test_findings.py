import fcntl
import os
import pty
import socket
import ssl
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from istio_hsm_installer import findings, hsm_network, tls_peer
from istio_hsm_installer.errors import InputError, InstallerError
from istio_hsm_installer.options import HsmOptions
from tests.support import pki
from tests.unit.istio_hsm_installer.sample import options

NOW = datetime(2030, 1, 1, tzinfo=UTC)
WANTED = options().cluster


def node(cpu: str = "1", memory: str = "4Gi") -> dict[str, Any]:
    return {"status": {"allocatable": {"cpu": cpu, "memory": memory}}}


def service(name: str, *, namespace: str = "shop", protocol: str | None = None) -> dict[str, Any]:
    port = {"port": 80, "name": name, **({"appProtocol": protocol} if protocol else {})}
    return {"metadata": {"name": "web", "namespace": namespace}, "spec": {"ports": [port]}}


def named(name: str) -> dict[str, Any]:
    return {"metadata": {"name": name}}


def test_the_guide_s_cluster_passes() -> None:
    assert not findings.nodes([node()] * 4, WANTED)


def test_a_cluster_that_is_too_small_is_told_in_each_respect() -> None:
    causes = [finding.cause for finding in findings.nodes([node("500m", "1Gi")], WANTED)]
    assert causes == [
        "the cluster has 1 nodes, not 4",
        "the cluster has 0.5 vCPU, not 4",
        "the cluster has 1.1 GB, not 15",
    ]


@pytest.mark.parametrize("text", ["v1.19.0", "v1.36.1", "1.20+"])
def test_a_supported_version_passes(text: str) -> None:
    assert not findings.version(text, WANTED)


@pytest.mark.parametrize(
    ("text", "said"), [("v1.18.20", "older than 1.19"), ("v1.25.0", "newer than 1.24")]
)
def test_a_version_that_is_not_supported_is_found(text: str, said: str) -> None:
    [finding] = findings.version(text, replace(WANTED, max_version="1.24"))
    assert said in finding.cause


@pytest.mark.parametrize("name", ["http", "http-web", "grpc-a-b", "tcp-1", "https-dns"])
def test_a_port_that_says_its_protocol_passes(name: str) -> None:
    assert not findings.ports([service(name)])


@pytest.mark.parametrize("name", ["", "web", "httpweb", "http-", "HTTP", "web-http"])
def test_a_port_that_does_not_is_found(name: str) -> None:
    [finding] = findings.ports([service(name)])
    assert "shop/web:80" in finding.cause


def test_a_port_with_an_app_protocol_or_of_kubernetes_itself_passes() -> None:
    assert not findings.ports(
        [service("web", protocol="http"), service("dns", namespace="kube-system")]
    )


def test_ca_keys_outside_the_hsm_and_other_control_planes_are_conflicts() -> None:
    found = findings.conflicts(
        [named("cacerts"), named("istio-ca-secret"), named("other")],
        [named("istiod"), named("istiod-asm-1106-2")],
        options(),
    )
    assert [finding.cause.split()[1] for finding in found] == [
        "cacerts",
        "istio-ca-secret",
        "control",
    ]
    assert not findings.conflicts([named("other")], [named("istiod-asm-1106-2")], options())


@pytest.mark.parametrize(("seconds", "count"), [(0, 0), (59, 0), (-61, 1), (3600, 1)])
def test_a_clock_that_is_far_off_is_found(seconds: int, count: int) -> None:
    date = format_datetime(NOW + timedelta(seconds=seconds), usegmt=True)
    assert len(findings.clock("Vault", date, NOW)) == count


def test_a_server_without_a_clock_is_not_judged() -> None:
    assert not findings.clock("Vault", "", NOW)


@pytest.fixture
def hsm(tmp_path: Path) -> HsmOptions:
    """Files for mutual TLS: each side trusts the other's certificate itself."""
    for name in ("server", "client"):
        made = pki.issue(name)
        (tmp_path / f"{name}.pem").write_bytes(made.pem)
        (tmp_path / f"{name}.key").write_bytes(
            made.key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
    return replace(
        options().hsm,
        client_cert_file=tmp_path / "client.pem",
        client_key_file=tmp_path / "client.key",
        server_cert_file=tmp_path / "server.pem",
    )


@pytest.fixture
def address(hsm: HsmOptions) -> Iterator[str]:
    """A TLS server that plays the HSM for one connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    folder = hsm.server_cert_file.parent
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    context.load_verify_locations(folder / "client.pem")
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            plain, _ = listening.accept()
            with plain:
                try:
                    with context.wrap_socket(plain, server_side=True) as secured:
                        secured.recv(1)
                except OSError:
                    return

        server = threading.Thread(target=serve)
        server.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        with socket.socket() as last:  # lets the thread go where nobody connected
            last.connect_ex(listening.getsockname())
        server.join()


def test_the_hsm_that_owns_its_certificate_passes(hsm: HsmOptions, address: str) -> None:
    hsm_network.shake_hands(hsm, address)


def test_another_server_in_the_hsm_s_place_is_found(
    hsm: HsmOptions, address: str, tmp_path: Path
) -> None:
    (tmp_path / "expected.pem").write_bytes(pki.issue("server").pem)
    with pytest.raises(InstallerError, match="is not the HSM of"):
        hsm_network.shake_hands(replace(hsm, server_cert_file=tmp_path / "expected.pem"), address)


def test_an_hsm_that_is_away_is_found(hsm: HsmOptions) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(InstallerError, match="cannot be reached over TLS"):
        hsm_network.shake_hands(hsm, f"127.0.0.1:{port}")


def test_files_that_are_no_pair_are_told_before_any_connection(hsm: HsmOptions) -> None:
    with pytest.raises(InputError, match="cannot be used for TLS"):
        hsm_network.shake_hands(replace(hsm, client_cert_file=hsm.server_cert_file), "127.0.0.1:1")


@pytest.mark.parametrize("address", ["a..b:1792", f"{'x' * 70}.example:1792", "127.0.0.1:0"])
def test_an_address_that_is_none_is_told_as_such(hsm: HsmOptions, address: str) -> None:
    with pytest.raises(InstallerError, match="cannot be reached over TLS"):
        hsm_network.shake_hands(hsm, address)
    with pytest.raises(InstallerError, match=r"answers over TLS|is no address"):
        tls_peer.look(address, name=None, root_pem=b"")


_ENCRYPTED = """
import sys
from pathlib import Path
from istio_hsm_installer import hsm_network
from istio_hsm_installer.errors import InputError
from istio_hsm_installer.options import HsmOptions

folder = Path(sys.argv[1])
hsm = HsmOptions(
    slot_label="mesh",
    kek_id="kek",
    root_cert_file=folder / "none",
    client_cert_file=folder / "client.pem",
    client_key_file=folder / "client.key",
    server_cert_file=folder / "server.pem",
)
try:
    hsm_network.shake_hands(hsm, "127.0.0.1:1")
except InputError:
    sys.exit(7)
"""


def test_no_passphrase_of_a_clients_key_is_asked_for_at_a_terminal(
    hsm: HsmOptions, tmp_path: Path
) -> None:
    key = serialization.load_pem_private_key(hsm.client_key_file.read_bytes(), None)
    hsm.client_key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    ours, terminal = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-c", _ENCRYPTED, str(tmp_path)],
            stdin=terminal,
            capture_output=True,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(terminal, termios.TIOCSCTTY, 0),
            timeout=20,
            check=False,
        )
    finally:
        os.close(ours)
        os.close(terminal)
    assert done.returncode == 7, done.stderr
