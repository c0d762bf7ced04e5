"""istiod's plugged-in CA: what is in its folder at each moment, and after what."""

import os
import shutil
import socket
import subprocess
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from tests.integration.istiod_ca_bridge import harness
from tests.integration.istiod_ca_bridge.conftest import Mesh
from tests.support import plugin
from tests.support.ports import free_port

FILES = ("ca-key.pem", "ca-cert.pem", "cert-chain.pem", "root-cert.pem")


@pytest.fixture
def cacerts() -> Iterator[Path]:
    """A folder in memory, as the volume of the pod."""
    folder = Path(tempfile.mkdtemp(prefix="cacerts-", dir="/dev/shm"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def on_disk() -> Iterator[Path]:
    """A folder that outlives the host's power (hier(7)); /tmp may be in memory."""
    folder = Path(tempfile.mkdtemp(prefix="cacerts-", dir="/var/tmp"))
    yield folder
    shutil.rmtree(folder)


def settings(cacerts: Path, **more: str) -> dict[str, str]:
    return {"BRIDGE_MODE": "sealed", "CA_PLUG_IN_DIR": str(cacerts)} | more


def found(cacerts: Path) -> list[str]:
    """Return which of the files an istiod finds now."""
    return [name for name in FILES if (cacerts / name).is_file()]


def verified(cacerts: Path, folder: Path) -> bool:
    """Tell whether openssl accepts the CA's certificate by the chain and root beside it."""
    roots, chain = cacerts / "root-cert.pem", cacerts / "cert-chain.pem"
    return (
        subprocess.run(
            ["openssl", "verify", "-CAfile", roots, "-untrusted", chain, cacerts / "ca-cert.pem"],
            cwd=folder,
            capture_output=True,
            check=False,
        ).returncode
        == 0
    )


@pytest.fixture(scope="module")
def ceremony(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Secrets of a sealed CA key whose certificate is there."""
    folder = tmp_path_factory.mktemp("ceremony")
    with harness.running_bridge(
        folder, mesh.plugin.socket, {"CA_KEY_MODE": "sealed", "BRIDGE_MODE": "asm"}
    ) as bridge:
        harness.bring_to_serving(bridge, mesh.plugin, mesh.root)
    return bridge.secrets


@pytest.fixture
def folder(ceremony: Path, tmp_path: Path) -> Path:
    """A bridge's folder, after the ceremony."""
    shutil.copytree(ceremony, tmp_path / "secrets")
    return tmp_path


def test_istiod_finds_nothing_until_the_ceremony_then_all_and_each_renewal_comes_whole(
    mesh: Mesh, tmp_path: Path, cacerts: Path
) -> None:
    counted: set[int] = set()
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            with os.scandir(cacerts / "..data") as entries:
                counted.add(len(list(entries)))

    with harness.running_bridge(tmp_path, mesh.plugin.socket, settings(cacerts)) as bridge:
        bridge.await_log(harness.WAIT_LINE)
        assert found(cacerts) == []
        assert probe(bridge) == 1

        harness.bring_to_serving(bridge, mesh.plugin, mesh.root)
        assert probe(bridge) == 0
        assert found(cacerts) == list(FILES)
        assert verified(cacerts, tmp_path)
        first = (cacerts / "ca-cert.pem").read_bytes()
        links = {name: (cacerts / name).lstat().st_ino for name in FILES}
        reader = threading.Thread(target=read)
        reader.start()
        csr = harness.decrypted_csr(mesh.plugin, bridge)
        bridge.offer(harness.signed_ca(csr, mesh.root, lifetime=timedelta(days=60)))
        bridge.await_log("plug_in.written", count=2)
        stop.set()
        reader.join()

    assert counted == {len(FILES)}
    assert (cacerts / "ca-cert.pem").read_bytes() != first
    assert verified(cacerts, tmp_path)
    # An istiod that listens for the names of the files hears of them too.
    assert all((cacerts / name).lstat().st_ino != links[name] for name in FILES)
    assert len(list(cacerts.glob("..set-*"))) == 1


def test_the_metrics_say_what_istiod_serves_with(mesh: Mesh, folder: Path, cacerts: Path) -> None:
    metrics = f"127.0.0.1:{free_port()}"
    environment = settings(cacerts, METRICS_LISTEN=metrics)
    with harness.running_bridge(folder, mesh.plugin.socket, environment) as bridge:
        bridge.await_serving()
        with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=5) as answer:
            figures = answer.read().decode().splitlines()

    assert 'istiod_ca_bridge_lifecycle_state{state="serving"} 1.0' in figures
    kind = "istiod_ca_bridge_certificate_expiry_timestamp_seconds{certificate="
    told = {line.split('"')[1] for line in figures if line.startswith(kind)}
    assert told == {"ca", "root", "path"}  # it has no server whose certificate could expire


def probe(bridge: harness.Bridge) -> int:
    """Return the exit code of the startup probe."""
    return plugin.command(
        ["health"],
        name="istiod-ca-bridge",
        environment={"HEALTH_LISTEN": bridge.environment["HEALTH_LISTEN"]},
    ).returncode


def test_the_key_is_the_certificates_for_its_owner_alone_and_never_in_the_log(
    mesh: Mesh, folder: Path, cacerts: Path
) -> None:
    with harness.running_bridge(folder, mesh.plugin.socket, settings(cacerts)) as bridge:
        bridge.await_serving()
        host, _, port = bridge.address.rpartition(":")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)), timeout=5)
        assert bridge.stop() == 0

    pem = (cacerts / "ca-key.pem").read_bytes()
    key = serialization.load_pem_private_key(pem, None)
    certificate = x509.load_pem_x509_certificate((cacerts / "ca-cert.pem").read_bytes())
    assert key.public_key() == certificate.public_key()
    assert (cacerts / "root-cert.pem").read_bytes() == mesh.root.pem
    modes = [(cacerts / name).stat().st_mode & 0o777 for name in FILES]
    assert modes == [0o400, 0o440, 0o440, 0o440]
    assert pem.splitlines()[1].decode() not in bridge.log
    assert "tokens.not_accepted" not in bridge.log


def test_a_restart_leaves_the_files_alone_and_a_set_damaged_by_hand_is_mended(
    mesh: Mesh, folder: Path, cacerts: Path
) -> None:
    with harness.running_bridge(folder, mesh.plugin.socket, settings(cacerts)) as bridge:
        bridge.await_serving()
        bridge.kill()
    whole = {name: (cacerts / name).read_bytes() for name in FILES}
    data = (cacerts / "..data").readlink()
    (cacerts / "..set-leftover").mkdir()
    (cacerts / "..set-leftover" / "ca-key.pem").write_text("half a key")

    with harness.running_bridge(folder, mesh.plugin.socket, settings(cacerts)) as bridge:
        assert found(cacerts) == list(FILES)
        bridge.await_serving()
        assert (cacerts / "..data").readlink() == data
        assert not (cacerts / "..set-leftover").exists()

        (cacerts / "root-cert.pem").chmod(0o600)
        (cacerts / "root-cert.pem").write_text("tampered")
        (cacerts / "ca-key.pem").unlink()
        bridge.await_log("plug_in.written", count=2)
        assert {name: (cacerts / name).read_bytes() for name in FILES} == whole


def test_the_files_are_overwritten_and_gone_when_the_operator_wants_that(
    mesh: Mesh, folder: Path, cacerts: Path
) -> None:
    wiped = settings(cacerts, CA_PLUG_IN_AT_EXIT="wipe")
    with harness.running_bridge(folder, mesh.plugin.socket, wiped) as bridge:
        bridge.await_serving()
        kept = (cacerts / "ca-key.pem").open("rb")
        assert bridge.stop() == 0

    with kept:
        assert set(kept.read()) == {0}
    assert list(cacerts.iterdir()) == []


@pytest.mark.parametrize("allowed", ["false", "true"])
def test_a_folder_on_a_disk_is_refused_unless_told(
    mesh: Mesh, folder: Path, on_disk: Path, allowed: str
) -> None:
    more = settings(on_disk, CA_PLUG_IN_ALLOW_DISK=allowed)
    with harness.running_bridge(folder, mesh.plugin.socket, more) as bridge:
        if allowed == "true":
            bridge.await_serving()
            assert found(on_disk) == list(FILES)
        else:
            assert bridge.await_exit() == 2
            assert "is not in memory, and a CA key would lie in it" in bridge.log


@pytest.mark.parametrize("name", ["ca-key.pem", "tls.crt"])
def test_a_folder_with_another_programs_ca_is_refused_and_left_alone(
    mesh: Mesh, folder: Path, cacerts: Path, name: str
) -> None:
    (cacerts / name).write_text("another's")
    with harness.running_bridge(folder, mesh.plugin.socket, settings(cacerts)) as bridge:
        assert bridge.await_exit() == 2

    assert f"{name} was put there by something else" in bridge.log
    assert (cacerts / name).read_text() == "another's"
