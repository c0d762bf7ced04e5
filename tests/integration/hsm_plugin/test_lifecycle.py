"""A plugin starts, waits for what it lacks, never burns a PIN, and ends in order."""

import itertools
import os
import signal
import socket
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from istio_hsm_proto import kms_istio_v1_pb2 as kms
from istio_hsm_proto.kms_istio_v1_pb2_grpc import KeyManagementServiceStub
from tests.support import plugin as plugins
from tests.support import softhsm, token_view
from tests.support.plugin import NOT_SERVING, SERVING, Plugin
from tests.support.softhsm import SoftHsm


def write_pin(hsm: SoftHsm, content: bytes) -> None:
    """Replace the PIN file as the Vault client does: whole."""
    other = hsm.pin_file.with_name("pin.new")
    other.write_bytes(content)
    other.replace(hsm.pin_file)


def refusal(plugin: Plugin) -> str:
    """Return the details of a call while the token is not usable."""
    with plugin.keys() as stub, pytest.raises(grpc.RpcError) as caught:
        stub.GenerateKEK(kms.GenerateKEKRequest(kek_kid=b"k"))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    return caught.value.details() or ""


def failures(plugin: Plugin, words: str) -> list[str]:
    """Return the messages of the events that say why the token is not usable."""
    events = plugin.events("token.unavailable")
    return [event["message"] for event in events if words in event["message"]]


# -- start and end -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hsm-plugin", "k8s-kms-plugin"])
def test_the_log_has_the_lines_that_operators_of_the_reference_look_for(
    hsm: SoftHsm, folder: Path, name: str
) -> None:
    with plugins.running(hsm, folder, environment={"LOG_FORMAT": "text"}, name=name) as plugin:
        with plugin.keys() as stub:
            stub.GenerateKEK(kms.GenerateKEKRequest(kek_kid=b"kek-of-the-mesh"))
            stub.GenerateDEK(kms.GenerateDEKRequest(kek_kid=b"kek-of-the-mesh"))
        text = plugin.text()
    for line in (
        f"Loaded P11 PIN from file: {hsm.pin_file}",
        f"KMS Plugin Listening on : {plugin.socket}",
        f"Serving on socket: {plugin.socket}",
        "KEK ID: kek-of-the-mesh",
    ):
        assert text.count(line) == 1, line


def test_sigterm_ends_with_0_and_leaves_no_socket(hsm: SoftHsm, folder: Path) -> None:
    with plugins.running(hsm, folder) as plugin:
        assert plugin.socket.exists()
        assert plugin.stop() == 0
        assert not plugin.socket.exists()
        assert plugin.events("server.stopped")
    assert [entry.name for entry in folder.iterdir()] == ["plugin.log"]


def test_sigint_ends_as_sigterm_does(hsm: SoftHsm, folder: Path) -> None:
    with plugins.running(hsm, folder) as plugin:
        plugin.process.send_signal(signal.SIGINT)
        assert plugin.wait() == 0
        assert not plugin.socket.exists()


def test_a_second_sigterm_changes_nothing(hsm: SoftHsm, folder: Path) -> None:
    with plugins.running(hsm, folder) as plugin:
        plugin.terminate()
        plugin.terminate()
        assert plugin.wait() == 0
        assert not plugin.socket.exists()


def _request_slow_keys(stub: KeyManagementServiceStub, count: int) -> list[Any]:
    stub.GenerateKEK(kms.GenerateKEKRequest(kek_kid=b"k"))
    dek = stub.GenerateDEK(kms.GenerateDEKRequest(kek_kid=b"k")).encrypted_dek_blob
    request = kms.GenerateSKeyRequest(size=4096, kind=kms.RSA, kek_kid=b"k", encrypted_dek_blob=dek)
    return [stub.GenerateSKey.future(request) for _ in range(count)]


def test_sigterm_waits_for_slow_calls_and_answers_them(hsm: SoftHsm, folder: Path) -> None:
    with (
        plugins.running(hsm, folder, arguments=["--sessions", "1", "--drain", "60s"]) as plugin,
        plugin.channel() as channel,
    ):
        stub = KeyManagementServiceStub(channel)
        calls = _request_slow_keys(stub, 3)
        # Answered on the same connection after the calls above were taken in.
        plugins.check_health(channel)
        plugin.terminate()
        for call in calls:
            assert call.result().encrypted_skey_blob
        assert plugin.wait() == 0
        assert not plugin.socket.exists()
        assert plugin.events("server.draining")
        assert plugin.events("server.stopped")


def test_calls_that_outlast_the_drain_are_cut_off_and_the_end_is_orderly(
    hsm: SoftHsm, folder: Path
) -> None:
    with (
        plugins.running(hsm, folder, arguments=["--sessions", "1", "--drain", "0s"]) as plugin,
        plugin.channel() as channel,
    ):
        calls = _request_slow_keys(KeyManagementServiceStub(channel), 8)
        plugins.check_health(channel)
        plugin.terminate()
        assert plugin.wait() == 0
        codes = {call.code() for call in calls if call.exception() is not None}
        assert codes <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
        assert codes
        assert not plugin.socket.exists()
        assert "Traceback" not in plugin.text()


def test_the_socket_of_a_killed_plugin_does_not_stop_the_next_one(
    hsm: SoftHsm, folder: Path
) -> None:
    with plugins.running(hsm, folder) as plugin:
        with plugin.keys() as stub:
            stub.GenerateKEK(kms.GenerateKEKRequest(kek_kid=b"before-the-crash"))
        plugin.kill()
        assert plugin.socket.exists()
    with plugins.running(hsm, folder) as plugin, plugin.keys() as stub:
        assert stub.GenerateDEK(
            kms.GenerateDEKRequest(kek_kid=b"before-the-crash")
        ).encrypted_dek_blob


def test_a_killed_plugin_leaves_no_record_that_holds_back_the_right_pin(
    hsm: SoftHsm, folder: Path
) -> None:
    for _ in range(3):
        with plugins.running(hsm, folder) as plugin:
            plugin.kill()
    with plugins.running(hsm, folder):
        pass


def test_a_second_plugin_on_a_live_socket_is_refused_and_the_first_serves_on(
    hsm: SoftHsm, folder: Path, plugin: Plugin
) -> None:
    second = plugins.command(
        ["serve", "--socket", str(plugin.socket)], environment=hsm.environment()
    )
    cause, hint = second.stderr.splitlines()
    assert second.returncode == 2
    assert cause == f"error: another server answers on {plugin.socket}"
    assert hint == "hint: stop it first, or choose another SOCKET"
    assert plugin.health() == SERVING
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_the_socket_is_open_to_its_group_and_closed_to_the_world(
    hsm: SoftHsm, folder: Path, umask: int
) -> None:
    before = os.umask(umask)
    try:
        started = plugins.start(hsm, folder)
    finally:
        os.umask(before)
    try:
        started.await_health(SERVING)
        status = started.socket.stat()
        assert stat.S_IMODE(status.st_mode) == 0o660
        if os.geteuid() == 0:
            assert status.st_gid == 1337
    finally:
        started.stop()


# -- settings that cannot work -------------------------------------------------------------

_Spoil = Callable[[SoftHsm, Path], dict[str, str]]


def _file(folder: Path) -> str:
    (folder / "file").write_text("not a library")
    return str(folder / "file")


def _libc(_: SoftHsm, __: Path) -> dict[str, str]:
    """A library that is no PKCS#11 module."""
    mapped = Path("/proc/self/maps").read_text().split()
    return {"P11_LIB": next(entry for entry in mapped if "libc.so" in entry or "musl" in entry)}


@pytest.mark.parametrize(
    ("spoil", "cause", "hint"),
    [
        (lambda _, __: {"P11_LIB": ""}, "P11_LIB (--p11-lib) is not set", "--help"),
        (lambda _, __: {"P11_LIB": "/no/module.so"}, "/no/module.so (P11_LIB) does not", "--help"),
        (lambda _, f: {"P11_LIB": _file(f)}, "cannot be loaded", "P11_LIB"),
        (_libc, "cannot be loaded", "P11_LIB"),
        (lambda _, __: {"P11_TOKEN": ""}, "P11_TOKEN (--p11-label) is not set", "--help"),
        (lambda _, __: {"P11_PIN_FILE": ""}, "P11_PIN_FILE", "--help"),
        (lambda _, __: {"SOCKET": "/no/folder/.sock"}, "/no/folder (SOCKET) does not", "--help"),
        (lambda _, __: {"SOCKET": "/" + "s" * 120}, "longer than 107", "--help"),
        (lambda _, f: {"SOCKET": _file(f)}, "is not a socket", "SOCKET"),
        (lambda _, __: {"SOCKET": "/proc/.sock"}, "/proc/.sock", "SOCKET"),
        (lambda _, __: {"HSM_PLUGIN_STATE_DIR": "/no/state"}, "/no/state", "--help"),
    ],
    ids=itertools.count(),
)
def test_a_setting_that_cannot_work_is_two_lines_and_exit_code_2(
    hsm: SoftHsm, folder: Path, spoil: _Spoil, cause: str, hint: str
) -> None:
    sound = hsm.environment() | {"SOCKET": str(folder / ".sock")}
    done = plugins.command(["serve"], environment=sound | spoil(hsm, folder))
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    # gRPC adds a line of its own when the system refuses a socket.
    first, second = [line for line in lines if not line.startswith("E")]
    assert first.startswith("error: ")
    assert cause in first
    assert second.startswith("hint: ")
    assert hint in second
    assert not stat.S_ISSOCK(
        (folder / ".sock").stat().st_mode if (folder / ".sock").exists() else 0
    )


# -- tokens --------------------------------------------------------------------------------


def test_a_wrong_token_label_is_waited_out_and_the_labels_seen_are_named(
    hsm: SoftHsm, folder: Path
) -> None:
    wrong = {"P11_TOKEN": "no-such-slot"}
    with plugins.running(hsm, folder, environment=wrong, wanted=NOT_SERVING) as plugin:
        plugin.await_event("token.unavailable", 2)
        [event, *_] = plugin.events("token.unavailable")
        assert event["message"] == 'no token bears the label "no-such-slot"; tokens seen: "mesh"'
        assert "P11_TOKEN" in event["hint"]
        assert 'the token "no-such-slot" is not connected' in refusal(plugin)
        assert plugin.health() == NOT_SERVING


def test_a_token_that_appears_later_is_found(tmp_path: Path, folder: Path) -> None:
    hsm = softhsm.configure(tmp_path / "token", label="late", pin="271828")
    with plugins.running(hsm, folder, wanted=NOT_SERVING) as plugin:
        plugin.await_event("token.unavailable")
        subprocess.run(
            [
                *("softhsm2-util", "--init-token", "--free", "--label", "late"),
                *("--so-pin", "31415926", "--pin", hsm.pin),
            ],
            env=os.environ | {"SOFTHSM2_CONF": str(hsm.config)},
            check=True,
            capture_output=True,
        )
        plugin.await_health(SERVING)


def test_two_tokens_of_one_label_are_not_chosen_from(hsm: SoftHsm, folder: Path) -> None:
    subprocess.run(
        [
            *("softhsm2-util", "--init-token", "--free", "--label", hsm.label),
            *("--so-pin", "31415926", "--pin", hsm.pin),
        ],
        env=os.environ | {"SOFTHSM2_CONF": str(hsm.config)},
        check=True,
        capture_output=True,
    )
    with plugins.running(hsm, folder, wanted=NOT_SERVING) as plugin:
        plugin.await_event("token.unavailable")
        assert failures(plugin, '2 tokens bear the label "mesh"')
        assert plugin.health() == NOT_SERVING


# -- PINs ----------------------------------------------------------------------------------


def test_a_wrong_pin_is_tried_once_also_across_restarts_and_the_right_one_is_picked_up(
    hsm: SoftHsm, folder: Path
) -> None:
    write_pin(hsm, b"wrong")
    with plugins.running(hsm, folder, wanted=NOT_SERVING) as plugin:
        plugin.await_event("token.unavailable")
        assert failures(plugin, 'the token "mesh" refused the PIN')
        assert "is not connected" in refusal(plugin)
    assert token_view.counts_a_wrong_pin(hsm)
    with token_view.viewed(hsm):
        pass  # the right PIN resets the token's counter
    assert not token_view.counts_a_wrong_pin(hsm)

    with plugins.running(hsm, folder, wanted=NOT_SERVING) as plugin:
        plugin.await_event("token.unavailable", 2)
        write_pin(hsm, b"wrong")
        plugin.await_event("token.unavailable", 3)
        assert len(failures(plugin, "refused the PIN")) == 1
        assert len(failures(plugin, "was refused before and is not tried again")) == 2
        assert not token_view.counts_a_wrong_pin(hsm)
        assert plugin.health() == NOT_SERVING

        write_pin(hsm, hsm.pin.encode() + b"\n")
        plugin.await_health(SERVING)
        with plugin.keys() as stub:
            assert stub.GenerateKEK(kms.GenerateKEKRequest(kek_kid=b"k")).kek_kid == b"k"
    assert not (folder / "pin-guard.json").exists()


def test_a_killed_plugin_does_not_try_the_wrong_pin_again(hsm: SoftHsm, folder: Path) -> None:
    write_pin(hsm, b"wrong")
    with plugins.running(hsm, folder, wanted=NOT_SERVING) as plugin:
        plugin.await_event("token.unavailable")
        plugin.kill()
    with plugins.running(hsm, folder, wanted=NOT_SERVING) as plugin:
        plugin.await_event("token.unavailable", 2)
        assert len(failures(plugin, "refused the PIN")) == 1
        assert len(failures(plugin, "not tried again")) == 1


def test_the_record_of_attempts_is_private(hsm: SoftHsm, folder: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    write_pin(hsm, b"wrong")
    kept = {"HSM_PLUGIN_STATE_DIR": str(state)}
    with plugins.running(hsm, folder, environment=kept, wanted=NOT_SERVING) as plugin:
        plugin.await_event("token.unavailable")
        [record] = state.iterdir()
        assert stat.S_IMODE(record.stat().st_mode) == 0o600
        assert b"wrong" not in record.read_bytes()


def test_a_damaged_record_of_attempts_is_said_and_nothing_is_tried(
    hsm: SoftHsm, folder: Path
) -> None:
    (folder / "pin-guard.json").write_text("{")
    with plugins.running(hsm, folder, wanted=NOT_SERVING) as plugin:
        plugin.await_event("token.unavailable")
        assert failures(plugin, "is damaged")
        assert not token_view.counts_a_wrong_pin(hsm)
        (folder / "pin-guard.json").unlink()
        write_pin(hsm, hsm.pin.encode())
        plugin.await_health(SERVING)


def _missing(hsm: SoftHsm) -> None:
    hsm.pin_file.unlink()


def _empty(hsm: SoftHsm) -> None:
    write_pin(hsm, b"")


def _two_lines(hsm: SoftHsm) -> None:
    write_pin(hsm, b"1111\n2222\n")


def _binary(hsm: SoftHsm) -> None:
    write_pin(hsm, b"\xff\xfe")


def _huge(hsm: SoftHsm) -> None:
    write_pin(hsm, b"1" * (1 << 20))


def _folder(hsm: SoftHsm) -> None:
    hsm.pin_file.unlink()
    hsm.pin_file.mkdir()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_missing, "cannot be read: No such file or directory"),
        (_folder, "cannot be read: Is a directory"),
        (_empty, "does not hold one line"),
        (_two_lines, "does not hold one line"),
        (_huge, "does not hold one line"),
        (_binary, "is not UTF-8"),
    ],
)
def test_a_pin_file_that_is_not_ready_is_awaited(
    hsm: SoftHsm, folder: Path, spoil: Callable[[SoftHsm], None], words: str
) -> None:
    spoil(hsm)
    with plugins.running(hsm, folder, wanted=NOT_SERVING) as plugin:
        plugin.await_event("token.unavailable")
        assert failures(plugin, words)
        assert "is not connected" in refusal(plugin)
        if hsm.pin_file.is_dir():
            hsm.pin_file.rmdir()
        write_pin(hsm, hsm.pin.encode())
        plugin.await_health(SERVING)
        assert not token_view.counts_a_wrong_pin(hsm)


def test_a_changed_pin_file_does_not_disturb_a_connected_plugin(hsm: SoftHsm, folder: Path) -> None:
    with plugins.running(hsm, folder) as plugin, plugin.keys() as stub:
        write_pin(hsm, b"wrong")
        for _ in range(5):
            assert stub.GenerateKEK(kms.GenerateKEKRequest(kek_kid=b"k")).kek_kid
        assert plugin.health() == SERVING
        assert not plugin.events("token.unavailable")


# -- clients that misbehave ----------------------------------------------------------------


def test_connections_that_send_garbage_or_nothing_do_no_harm(
    plugin: Plugin, keys: KeyManagementServiceStub
) -> None:
    for content in (
        b"",
        b"\0" * 4096,
        b"GET / HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff",
    ):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(plugin.socket))
            client.sendall(content)
    assert keys.GenerateKEK(kms.GenerateKEKRequest(kek_kid=b"after-garbage")).kek_kid


def test_callers_who_leave_do_no_harm(
    keys: KeyManagementServiceStub, kek_id: bytes, dek_blob: bytes
) -> None:
    request = kms.GenerateSKeyRequest(
        size=2048, kind=kms.RSA, kek_kid=kek_id, encrypted_dek_blob=dek_blob
    )
    for _ in range(10):
        keys.GenerateSKey.future(request).cancel()
    with pytest.raises(grpc.RpcError) as caught:
        keys.GenerateSKey(request, timeout=0.001)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    blob = keys.GenerateSKey(request).encrypted_skey_blob
    pem = keys.LoadSKey(
        kms.LoadSKeyRequest(kek_kid=kek_id, encrypted_dek_blob=dek_blob, encrypted_skey_blob=blob)
    ).plaintext_skey
    assert isinstance(serialization.load_pem_private_key(pem, None), rsa.RSAPrivateKey)


def test_more_calls_than_may_wait_are_told_to_come_back(hsm: SoftHsm, folder: Path) -> None:
    few = ["--sessions", "1", "--queue-limit", "2"]
    with plugins.running(hsm, folder, arguments=few) as plugin, plugin.keys() as stub:
        calls = _request_slow_keys(stub, 8)
        codes = [call.code() for call in calls]
        refused = [call for call in calls if call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED]
        assert codes.count(grpc.StatusCode.OK) >= 2
        assert set(codes) <= {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert refused
        assert "calls wait for the token already" in (refused[0].details() or "")
        assert stub.GenerateKEK(kms.GenerateKEKRequest(kek_kid=b"k")).kek_kid
