"""A plugin that accepts, refuses, or is silent: what becomes of the set."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from istio_hsm_proto import control_v1_pb2 as control
from istio_hsm_proto import control_v1_pb2_grpc as control_grpc
from tests.integration.vault_client.conftest import Mesh
from tests.integration.vault_client.test_token_life import tokens
from tests.support.vault_client import run_client

Trial = control.TrialCredentialsResponse


@dataclass(slots=True)
class Told:
    """The generations that a stand-in was told of, and those it was to try."""

    reloads: list[str] = field(default_factory=list)
    trials: list[str] = field(default_factory=list)


def accept(_: grpc.ServicerContext) -> None:
    """Answer a reload with success."""


@contextmanager
def plugin_that(
    socket: Path,
    *,
    reload: Callable[[grpc.ServicerContext], None] = accept,
    trial: Trial | None = None,
) -> Iterator[Told]:
    """A stand-in for the plugin's ControlService; without `trial` it is one that has none."""
    told = Told()

    class Control(control_grpc.ControlServiceServicer):
        def ReloadCredentials(  # noqa: N802 - gRPC's name
            self, request: control.ReloadCredentialsRequest, context: grpc.ServicerContext
        ) -> control.ReloadCredentialsResponse:
            told.reloads.append(request.generation)
            reload(context)
            return control.ReloadCredentialsResponse(generation=request.generation)

        def TrialCredentials(  # noqa: N802 - gRPC's name
            self, request: control.TrialCredentialsRequest, context: grpc.ServicerContext
        ) -> control.TrialCredentialsResponse:
            told.trials.append(request.generation)
            if trial is None:
                context.abort(grpc.StatusCode.UNIMPLEMENTED, "an older plugin")
            return trial

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
        plugin_that(socket, trial=Trial(verdict=Trial.ACCEPTED)) as told,
        mesh.client(HSM_PLUGIN_SOCKET=str(socket), HSM_PLUGIN_TIMEOUT="30s") as client,
    ):
        generation = str(client.wait_event("set.published")["generation"])
        client.wait_status(state="ready", acknowledged=True)
        assert (told.trials, told.reloads) == ([generation], [generation])


def test_a_plugin_that_refuses_the_set_is_told_from_one_that_is_silent(mesh: Mesh) -> None:
    socket = mesh.folder / "plugin.sock"

    def refuse(context: grpc.ServicerContext) -> None:
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "wrong PIN")

    with mesh.client(HSM_PLUGIN_SOCKET=str(socket), HSM_PLUGIN_TIMEOUT="100ms") as client:
        client.wait_event("trial.silent", reason="UNAVAILABLE: there is no socket yet")
        client.wait_event("consumer.silent")
        with plugin_that(socket, reload=refuse):
            client.wait_event(
                "consumer.answered", accepted=False, reason="FAILED_PRECONDITION: wrong PIN"
            )
            client.wait_status(state="ready", acknowledged=False)


def test_a_refused_trial_leaves_nothing_of_the_set_and_is_not_asked_again(mesh: Mesh) -> None:
    socket = mesh.folder / "plugin.sock"
    refusal = Trial(verdict=Trial.REFUSED, reason="the token refused the PIN")
    with (
        plugin_that(socket, trial=refusal) as told,
        mesh.client(HSM_PLUGIN_SOCKET=str(socket), HSM_PLUGIN_TIMEOUT="30s") as client,
    ):
        status = client.wait_status(state="starting", cause="trial", reason="refused")
        assert "the token refused the PIN" in str(status["message"])
        failures = 'vault_client_failures_total{cause="trial"}'
        client.wait(lambda: client.metrics()[failures] >= 3, "two more polls")
        assert len(told.trials) == 1
        assert told.reloads == []
        assert list(mesh.output.iterdir()) == []

        mesh.put(mesh.values | {"PIN": "another-one"})
        client.wait(lambda: len(told.trials) == 2, "a trial of the new version")


def test_an_older_plugin_without_a_trial_gets_the_set_as_before(mesh: Mesh) -> None:
    socket = mesh.folder / "plugin.sock"
    with (
        plugin_that(socket) as told,
        mesh.client(HSM_PLUGIN_SOCKET=str(socket), HSM_PLUGIN_TIMEOUT="30s") as client,
    ):
        client.wait_status(state="ready", acknowledged=True)
        client.wait_event("trial.silent", reason="UNIMPLEMENTED: an older plugin")
        assert len(told.reloads) == 1


def test_what_must_be_tried_waits_for_the_plugin_except_at_the_first_start(mesh: Mesh) -> None:
    socket = mesh.folder / "plugin.sock"
    settings = {
        "HSM_PLUGIN_SOCKET": str(socket),
        "HSM_PLUGIN_TIMEOUT": "500ms",
        "TRIAL_LOGIN": "required",
    }
    with mesh.client(**settings) as client:
        client.wait_status(state="ready", kv_version=1)
        mesh.put(mesh.values | {"PIN": "another-one"})
        client.wait_status(state="degraded", cause="trial", reason="untried", kv_version=1)
        assert client.file("pin") == mesh.values["PIN"]
        with plugin_that(socket, trial=Trial(verdict=Trial.ACCEPTED)):
            client.wait_status(state="ready", kv_version=2)
            assert client.file("pin") == "another-one"


def test_the_state_is_ready_while_the_plugin_is_still_awaited(mesh: Mesh) -> None:
    settings = {"HSM_PLUGIN_SOCKET": str(mesh.folder / "none"), "HSM_PLUGIN_TIMEOUT": "30s"}
    with mesh.client(**settings) as client:
        client.wait_status(state="ready", acknowledged=None)
        assert client.count("consumer.silent") == 0


def test_an_init_container_does_not_wait_for_a_plugin_that_starts_after_it(mesh: Mesh) -> None:
    socket = str(mesh.folder / "none")
    settings = mesh.environment(HSM_PLUGIN_SOCKET=socket, HSM_PLUGIN_TIMEOUT="30s")
    done = run_client(settings, "--once")
    assert done.returncode == 0, done.stderr
    assert "consumer.silent" in done.stderr


def test_a_sigterm_while_the_plugin_is_awaited_still_revokes_the_token(mesh: Mesh) -> None:
    socket = mesh.folder / "plugin.sock"
    with mesh.client(HSM_PLUGIN_SOCKET=str(socket), HSM_PLUGIN_TIMEOUT="30s") as client:
        client.wait_status(state="ready", acknowledged=None)
        assert client.terminate() == 0
        assert client.count("token.revoked") == 1
        assert tokens(mesh) == []


def test_a_sigterm_during_a_trial_publishes_nothing_untried(mesh: Mesh) -> None:
    socket = mesh.folder / "plugin.sock"
    with mesh.client(HSM_PLUGIN_SOCKET=str(socket), HSM_PLUGIN_TIMEOUT="30s") as client:
        client.wait_status(state="ready", kv_version=1)
        assert client.terminate() == 0
    mesh.put(mesh.values | {"PIN": "another-one"})
    with mesh.client(HSM_PLUGIN_SOCKET=str(socket), HSM_PLUGIN_TIMEOUT="30s") as client:
        client.wait(lambda: len(list(mesh.output.glob("..2*"))) == 2, "a set that is staged")
        assert client.terminate() == 0
        assert client.count("set.published") == 0
        assert client.file("pin") == mesh.values["PIN"]
        assert len(list(mesh.output.glob("..2*"))) == 1
