"""The CA key's way from nothing to serving, as processes on SoftHSM2, killed and fed nonsense."""

import base64
import json
import signal
import subprocess
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from grpc_health.v1 import health_pb2

from istio_hsm_proto import signing_v1_pb2
from tests.integration.istiod_ca_bridge import harness
from tests.integration.istiod_ca_bridge.conftest import Mesh, token_settings
from tests.support import pki, plugin, softhsm

NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVING = health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize(
    ("mode", "algorithm", "bits"),
    [
        ("resident", "rsa-2048", 2048),
        ("resident", "rsa-3072", 3072),
        ("resident", "rsa-4096", 4096),
        ("resident", "ecdsa-p256", 256),
        ("resident", "ecdsa-p384", 384),
        ("sealed", "rsa-2048", 2048),
        ("sealed", "rsa-3072", 3072),
        ("sealed", "rsa-4096", 4096),
    ],
)
def test_each_kind_of_ca_key_comes_to_serve(
    mesh: Mesh, tmp_path: Path, mode: str, algorithm: str, bits: int
) -> None:
    tokens = harness.token_issuer()
    settings = token_settings(tmp_path, tokens) | {
        "CA_KEY_MODE": mode,
        "CA_KEY_ALGORITHM": algorithm,
    }
    with harness.running_bridge(tmp_path, mesh.plugin.socket, settings) as bridge:
        harness.bring_to_serving(bridge, mesh.plugin, mesh.root)
        workload = harness.create_certificate(bridge, token=tokens.token())

    issuer = x509.load_pem_x509_certificate(workload.chain[1].encode())
    workload.leaf.verify_directly_issued_by(issuer)
    key = issuer.public_key()
    assert hasattr(key, "key_size")
    assert key.key_size == bits
    assert isinstance(key, rsa.RSAPublicKey) == algorithm.startswith("rsa")
    kept = {"encrypted-skey"} if mode == "sealed" else {"key-id", "key-algorithm"}
    assert set(bridge.secret("istio-ca-encrypted-key")) == {"kek-id", "encrypted-dek"} | kept


def test_while_it_waits_it_says_so_and_is_not_serving(mesh: Mesh, tmp_path: Path) -> None:
    with harness.running_bridge(tmp_path, mesh.plugin.socket) as bridge:
        bridge.await_log(harness.WAIT_LINE, count=2)

        assert bridge.health() == NOT_SERVING
        with pytest.raises(FileNotFoundError):
            bridge.root_file.read_bytes()
        assert set(bridge.secret("istio-ca-cert-csr")) == {
            "kek-id",
            "encrypted-dek",
            "csr-id",
            "encrypted-csr",
        }


def test_the_guide_s_decrypt_csr_opens_the_csr(mesh: Mesh, tmp_path: Path) -> None:
    with harness.running_bridge(tmp_path, mesh.plugin.socket) as bridge:
        bridge.await_log(harness.WAIT_LINE)
        secret = bridge.secret("istio-ca-cert-csr")
    data = {key: base64.b64encode(value).decode() for key, value in secret.items()}
    (tmp_path / "csr.json").write_text(json.dumps({"data": data}))

    result = plugin.command(
        ["decrypt-csr", "-f", str(tmp_path / "csr.json"), "-o", str(tmp_path / "csr.pem")],
        environment={"SOCKET": str(mesh.plugin.socket)},
    )

    assert result.returncode == 0, result.stderr
    csr = x509.load_pem_x509_csr((tmp_path / "csr.pem").read_bytes())
    assert csr.subject.rfc4514_string() == "O=cluster.local"
    assert not list(csr.extensions)


def test_wrong_chains_are_refused_with_the_reason_and_the_right_one_is_taken(
    mesh: Mesh, tmp_path: Path
) -> None:
    with harness.running_bridge(tmp_path, mesh.plugin.socket) as bridge:
        bridge.await_log(harness.WAIT_LINE)
        csr = harness.decrypted_csr(mesh.plugin, bridge)
        right = harness.signed_ca(csr, mesh.root)
        other = harness.signed_ca(x509.load_pem_x509_csr(pki.request()), mesh.root)
        for wrong, reason in (
            (harness.signed_ca(csr, pki.root("Foreign")), "the HSM plugin refuses the chain"),
            (other, "is not of this CA's key"),
            (harness.signed_ca(csr, mesh.root, lifetime=timedelta(minutes=-1)), "expired"),
            (harness.signed_ca(csr, mesh.root, is_ca=False), "is not a CA"),
            (right[:-200], "cert-chain.pem holds"),
            (b"", ""),
        ):
            bridge.offer(wrong)
            bridge.await_log(reason)
            assert bridge.health() == NOT_SERVING

        bridge.offer(right)
        bridge.await_serving()

    for line in ("CA cert:", "intermediate certs:", "root cert:"):
        assert line in bridge.log
    assert bridge.root_file.read_bytes() == mesh.root.pem


def test_a_new_chain_is_taken_up_and_a_wrong_one_leaves_the_old_serving(
    mesh: Mesh, tmp_path: Path
) -> None:
    tokens = harness.token_issuer()
    settings = token_settings(tmp_path, tokens)
    with harness.running_bridge(tmp_path, mesh.plugin.socket, settings) as bridge:
        harness.bring_to_serving(bridge, mesh.plugin, mesh.root)
        first = harness.create_certificate(bridge, token=tokens.token())
        csr = harness.decrypted_csr(mesh.plugin, bridge)

        bridge.offer(harness.signed_ca(csr, pki.root("Foreign")))
        bridge.await_log("ca_chain.refused")
        assert harness.create_certificate(bridge, token=tokens.token()).chain[1] == first.chain[1]

        bridge.offer(harness.signed_ca(csr, mesh.root, lifetime=timedelta(days=60)))
        bridge.await_log("server_certificate.renewed", count=2)
        second = harness.create_certificate(bridge, token=tokens.token())
        assert second.chain[1] != first.chain[1]
        assert harness.create_certificate(bridge, client=first).chain[1] == second.chain[1]


def test_a_restart_goes_on_with_the_same_key_and_serves_at_once(mesh: Mesh, tmp_path: Path) -> None:
    tokens = harness.token_issuer()
    settings = token_settings(tmp_path, tokens)
    with harness.running_bridge(tmp_path, mesh.plugin.socket, settings) as bridge:
        harness.bring_to_serving(bridge, mesh.plugin, mesh.root)
        before = harness.create_certificate(bridge, token=tokens.token())
        secret = bridge.secret("istio-ca-encrypted-key")
        bridge.kill()
    with harness.running_bridge(tmp_path, mesh.plugin.socket, settings) as bridge:
        bridge.await_serving()
        after = harness.create_certificate(bridge, client=before)

    assert after.chain[1:] == before.chain[1:]
    assert bridge.secret("istio-ca-encrypted-key") == secret


@pytest.mark.parametrize("moment", ["ca_key.recorded", "ca_key.ready", "ca_csr.written"])
def test_killed_at_a_step_the_next_start_has_one_key_in_the_token(
    tmp_path: Path, moment: str
) -> None:
    hsm = softhsm.make_token(tmp_path / "token")
    root = pki.root()
    with plugin.running(hsm, tmp_path / "plugin") as running:
        harness.prepare(running, root)
        with harness.running_bridge(tmp_path, running.socket) as bridge:
            bridge.await_log(moment)
            bridge.kill()
        record = bridge.secret("istio-ca-encrypted-key")
        with harness.running_bridge(tmp_path, running.socket) as bridge:
            harness.bring_to_serving(bridge, running, root)

        assert bridge.secret("istio-ca-encrypted-key") == record


@pytest.mark.parametrize(
    ("secret", "key", "change"),
    [
        ("istio-ca-encrypted-key", "key-id", "emptied"),
        ("istio-ca-encrypted-key", "encrypted-dek", "emptied"),
        ("istio-ca-cert-csr", "encrypted-csr", "emptied"),
        ("istio-ca-cert-csr", "encrypted-csr", "tampered"),
        ("istio-ca-cert-csr", "encrypted-dek", "tampered"),
    ],
)
def test_a_corrupt_secret_stops_the_process_with_two_lines_and_nothing_is_made_anew(
    mesh: Mesh, tmp_path: Path, secret: str, key: str, change: str
) -> None:
    with harness.running_bridge(tmp_path, mesh.plugin.socket) as bridge:
        bridge.await_log(harness.WAIT_LINE)
        bridge.stop()
    path = bridge.secrets / secret / key
    content = path.read_bytes()
    path.chmod(0o600)
    middle = len(content) // 2
    path.write_bytes(
        b""
        if change == "emptied"
        else content[:middle] + (b"A" if content[middle] != 65 else b"B") + content[middle + 1 :]
    )
    before = {name: bridge.secret(name) for name in ("istio-ca-encrypted-key", "istio-ca-cert-csr")}

    with harness.running_bridge(tmp_path, mesh.plugin.socket) as again:
        assert again.await_exit() == 1

    *_, error, hint = again.log.splitlines()
    assert error.startswith("error: ")
    assert secret in error
    assert hint.startswith("hint: ")
    assert {name: again.secret(name) for name in before} == before


def test_a_key_that_the_hsm_does_not_have_is_not_made_under_an_old_csr(
    mesh: Mesh, tmp_path: Path
) -> None:
    with harness.running_bridge(tmp_path, mesh.plugin.socket) as bridge:
        bridge.await_log(harness.WAIT_LINE)
        bridge.stop()
    path = bridge.secrets / "istio-ca-encrypted-key" / "key-id"
    path.chmod(0o600)
    path.write_bytes(b"another-key")

    with harness.running_bridge(tmp_path, mesh.plugin.socket) as again:
        again.await_log("ca_key.not_prepared")
        assert again.health() == NOT_SERVING
        with mesh.plugin.signing() as signing, pytest.raises(grpc.RpcError):
            signing.GetPublicKey(
                signing_v1_pb2.GetPublicKeyRequest(key_id=b"another-key"), timeout=10
            )


def test_a_missing_kek_is_waited_for_and_told(tmp_path: Path) -> None:
    hsm = softhsm.make_token(tmp_path / "token")
    with (
        plugin.running(hsm, tmp_path / "plugin") as running,
        harness.running_bridge(tmp_path, running.socket) as bridge,
    ):
        bridge.await_log("ca_key.not_prepared")

        harness.prepare(running, pki.root())
        bridge.await_log(harness.WAIT_LINE)


def test_the_plugin_killed_while_serving_means_not_serving_until_it_is_back(
    tmp_path: Path,
) -> None:
    hsm = softhsm.make_token(tmp_path / "token")
    root = pki.root()
    tokens = harness.token_issuer()
    settings = token_settings(tmp_path, tokens)
    with plugin.running(hsm, tmp_path / "plugin") as running:
        harness.prepare(running, root)
        with harness.running_bridge(tmp_path, running.socket, settings) as bridge:
            harness.bring_to_serving(bridge, running, root)
            running.kill()

            with pytest.raises(grpc.RpcError) as caught:
                harness.create_certificate(bridge, token=tokens.token())
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            bridge.wait_until(lambda: bridge.health() == NOT_SERVING, "NOT_SERVING")

            with plugin.running(hsm, tmp_path / "plugin"):
                bridge.await_serving()
                harness.create_certificate(bridge, token=tokens.token())


def test_the_root_imported_later_lets_the_chain_in(tmp_path: Path) -> None:
    hsm = softhsm.make_token(tmp_path / "token")
    root, other = pki.root(), pki.root("Other")
    with plugin.running(hsm, tmp_path / "plugin") as running:
        harness.prepare(running, other)
        with harness.running_bridge(tmp_path, running.socket) as bridge:
            bridge.await_log(harness.WAIT_LINE)
            bridge.offer(harness.signed_ca(harness.decrypted_csr(running, bridge), root))
            bridge.await_log("the HSM plugin refuses the chain")

            harness.prepare(running, root)
            bridge.await_serving()


def probe(bridge: harness.Bridge) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [plugin.program("istiod-ca-bridge"), "health"],
        env={"HEALTH_LISTEN": bridge.environment["HEALTH_LISTEN"]},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_the_exec_probe_is_0_while_it_serves_and_1_when_it_waits_or_is_gone(
    mesh: Mesh, tmp_path: Path
) -> None:
    with harness.running_bridge(tmp_path, mesh.plugin.socket) as bridge:
        bridge.await_log(harness.WAIT_LINE)
        waiting = probe(bridge)
        harness.bring_to_serving(bridge, mesh.plugin, mesh.root)
        assert probe(bridge).returncode == 0
    gone = probe(bridge)
    assert (waiting.returncode, gone.returncode) == (1, 1)
    assert waiting.stderr.startswith("error: the bridge is there but does not serve")
    assert "nothing answers" in gone.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_in_order_and_leaves_nothing_behind(
    mesh: Mesh, tmp_path: Path, number: signal.Signals
) -> None:
    def folders() -> set[Path]:
        return set(Path("/dev/shm").glob("istiod-ca-bridge.*"))  # noqa: S108 - listed

    before = folders()
    with harness.running_bridge(tmp_path, mesh.plugin.socket) as bridge:
        harness.bring_to_serving(bridge, mesh.plugin, mesh.root)
        new = folders() - before  # another bridge of this host may have started meanwhile
        assert {folder.stat().st_mode & 0o777 for folder in new} == {0o700}
        bridge.process.send_signal(number)

        assert bridge.await_exit() == 0

    assert new - folders()
    assert "bridge.stopped" in bridge.log


def test_settings_that_cannot_work_are_told_in_two_lines() -> None:
    result = plugin.command(["serve"], name="istiod-ca-bridge")

    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        "error: KEY_MANAGEMENT_KEY_ID: it is not set",
        "hint: see `istiod-ca-bridge serve --help`",
    ]


def test_a_port_that_is_taken_is_told_in_two_lines(mesh: Mesh, tmp_path: Path) -> None:
    with harness.running_bridge(tmp_path, mesh.plugin.socket) as bridge:
        harness.bring_to_serving(bridge, mesh.plugin, mesh.root)
        (tmp_path / "second").mkdir()
        taken = {"CA_LISTEN": bridge.address}
        with harness.running_bridge(tmp_path / "second", mesh.plugin.socket, taken) as second:
            assert second.await_exit() == 1

    assert f"error: cannot listen on {bridge.address}" in second.log


def test_no_key_token_or_blob_is_ever_written_to_the_log(mesh: Mesh, tmp_path: Path) -> None:
    tokens = harness.token_issuer()
    token = tokens.token()
    settings = token_settings(tmp_path, tokens) | {
        "CA_KEY_MODE": "sealed",
        "LOG_FORMAT": "json",
    }
    with harness.running_bridge(tmp_path, mesh.plugin.socket, settings) as bridge:
        harness.bring_to_serving(bridge, mesh.plugin, mesh.root)
        harness.create_certificate(bridge, token=token)
        with pytest.raises(grpc.RpcError):
            harness.create_certificate(bridge, token=token[:-3])
        environ = Path(f"/proc/{bridge.process.pid}/environ").read_bytes()
        bridge.stop()

    for part in (*token.split("."), "PRIVATE KEY", "Bearer"):
        assert part not in bridge.log
    for name in ("istio-ca-encrypted-key", "istio-ca-cert-csr"):
        for key, value in bridge.secret(name).items():
            if key.startswith("encrypted"):
                assert value.decode()[:40] not in bridge.log
    assert token.encode() not in environ
    events = [json.loads(line) for line in bridge.log.splitlines()]
    assert any(event["event"] == "certificate.issued" for event in events)
