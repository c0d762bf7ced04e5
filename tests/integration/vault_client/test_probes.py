"""What probes ask, and what they are told."""

import http.client
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc

from istio_hsm_proto import control_v1_pb2 as control
from istio_hsm_proto import control_v1_pb2_grpc as control_grpc
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


@contextmanager
def plugin_that(
    socket: Path, answer: Callable[[str, grpc.ServicerContext], None]
) -> Iterator[list[str]]:
    """A stand-in for the plugin's ControlService; yields the generations it was told of."""
    told: list[str] = []

    class Control(control_grpc.ControlServiceServicer):
        def ReloadCredentials(  # noqa: N802 - gRPC's name
            self, request: control.ReloadCredentialsRequest, context: grpc.ServicerContext
        ) -> control.ReloadCredentialsResponse:
            told.append(request.generation)
            answer(request.generation, context)
            return control.ReloadCredentialsResponse(generation=request.generation)

    server = grpc.server(ThreadPoolExecutor(2))
    control_grpc.add_ControlServiceServicer_to_server(Control(), server)
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    try:
        yield told
    finally:
        server.stop(None).wait()


def test_a_plugin_that_accepts_the_set_is_waited_for_and_its_word_shown(mesh: Mesh) -> None:
    socket = mesh.folder / "plugin.sock"
    with (
        plugin_that(socket, lambda _generation, _context: None) as told,
        mesh.client(HSM_PLUGIN_SOCKET=str(socket), HSM_PLUGIN_TIMEOUT="30s") as client,
    ):
        generation = str(client.wait_event("set.published")["generation"])
        client.wait_status(state="ready", acknowledged=True)
        assert told == [generation]


def test_a_plugin_that_refuses_the_set_is_told_from_one_that_is_silent(mesh: Mesh) -> None:
    socket = mesh.folder / "plugin.sock"

    def refuse(_generation: str, context: grpc.ServicerContext) -> None:
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "wrong PIN")

    with mesh.client(HSM_PLUGIN_SOCKET=str(socket), HSM_PLUGIN_TIMEOUT="100ms") as client:
        client.wait_event("consumer.silent")
        with plugin_that(socket, refuse):
            client.wait_event(
                "consumer.answered", accepted=False, reason="FAILED_PRECONDITION: wrong PIN"
            )
            client.wait_status(state="ready", acknowledged=False)
