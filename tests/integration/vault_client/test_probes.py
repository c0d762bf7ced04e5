"""What probes ask, and what they are told."""

import http.client

from tests.integration.vault_client.conftest import Mesh
from tests.support.vault_client import run_client


def test_the_exec_probe_agrees_with_the_daemon(mesh: Mesh) -> None:
    with mesh.client() as client:
        client.wait_status(state="ready")
        environment = mesh.environment(HEALTH_ADDR=f"127.0.0.1:{client.port}")
        probe = run_client(environment, "healthcheck")
        assert (probe.returncode, probe.stdout) == (0, "ready\n")
        client.terminate()
        probe = run_client(environment, "healthcheck")
        assert probe.returncode == 1
        assert probe.stderr.startswith("error: no answer from")


def test_the_exec_probe_tells_why_nothing_is_there(mesh: Mesh) -> None:
    with mesh.client(VAULT_ROLE="nobody") as client:
        client.wait_status(state="starting", cause="rejected")
        environment = mesh.environment(HEALTH_ADDR=f"127.0.0.1:{client.port}")
        probe = run_client(environment, "healthcheck")
        assert probe.returncode == 1
        assert "no role nobody" in probe.stderr


def test_without_http_the_exec_probe_judges_the_files(mesh: Mesh) -> None:
    environment = mesh.environment(HEALTH_ADDR="off")
    assert run_client(environment, "healthcheck").returncode == 1
    run_client(environment, "--once")
    assert run_client(environment, "healthcheck").returncode == 0
    (mesh.output / "..data" / "pin").unlink()
    assert run_client(environment, "healthcheck").returncode == 1


def test_metrics_tell_the_state_the_versions_and_the_expiries(mesh: Mesh) -> None:
    with mesh.client() as client:
        client.wait_status(state="ready")
        figures = client.metrics()
        assert figures['vault_client_state{state="ready"}'] == 1
        assert figures['vault_client_state{state="degraded"}'] == 0
        assert figures["vault_client_kv_version"] == 1
        assert figures["vault_client_publishes_total"] == 1
        assert (
            figures['vault_client_certificate_expiry_timestamp_seconds{file="clientcert.pem"}'] > 0
        )
        assert figures['vault_client_failures_total{cause="forbidden"}'] == 0


def test_failures_are_counted_by_cause(mesh: Mesh) -> None:
    with mesh.client(VAULT_ROLE="nobody") as client:
        client.wait_status(cause="rejected")
        assert client.metrics()['vault_client_failures_total{cause="rejected"}'] >= 1
        assert client.metrics()['vault_client_cause{cause="rejected"}'] == 1


def test_only_the_known_pages_and_methods_are_served(mesh: Mesh) -> None:
    with mesh.client() as client:
        assert client.get("/other")[0] == 404
        connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=10)
        connection.request("POST", "/readyz", body=b"x")
        assert connection.getresponse().status == 405
        connection.close()


def test_an_address_in_use_is_a_mistake_in_the_settings(mesh: Mesh) -> None:
    with mesh.client() as client:
        second = mesh.environment(
            OUTPUT_DIR=str(mesh.output / "second"), HEALTH_ADDR=f"127.0.0.1:{client.port}"
        )
        done = run_client(second)
    assert done.returncode == 78
    assert "cannot be listened on" in done.stderr
