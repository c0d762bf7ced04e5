"""With an allow-list the kernel says who connects, and who is not on the list gets nowhere."""

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import grpc
import pytest

from istio_hsm_proto import kms_istio_v1_pb2 as kms
from tests.support import plugin as plugins
from tests.support.plugin import SERVING, Plugin
from tests.support.softhsm import SoftHsm

STRANGER = 4_000_000_000
"""A uid and a gid of nobody here."""


@contextmanager
def allowing(hsm: SoftHsm, folder: Path, *arguments: str) -> Iterator[Plugin]:
    """A plugin with an allow-list, connected to its token."""
    with plugins.running(hsm, folder, arguments=arguments, wanted=None) as plugin:
        plugin.await_event("token.connected")
        yield plugin


def front_of(plugin: Plugin) -> int:
    """Return the process id of the plugin's front."""
    children = Path(f"/proc/{plugin.pid}/task/{plugin.pid}/children").read_text().split()
    [front] = [
        int(child)
        for child in children
        if b"hsm_plugin.front" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]
    return front


@pytest.fixture(scope="module")
def admitting(shared_hsm: SoftHsm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plugin]:
    """A plugin that admits this process by its uid, and no other."""
    folder = tmp_path_factory.mktemp("front")
    with allowing(shared_hsm, folder, "--allow-uid", f"{STRANGER},{os.getuid()}") as plugin:
        plugin.await_health(SERVING)
        yield plugin


def test_an_allowed_process_is_served_and_logged(admitting: Plugin) -> None:
    with admitting.keys() as keys:
        assert keys.GenerateKEK(kms.GenerateKEKRequest(kek_kid=b"a"), timeout=10).kek_kid == b"a"
    admitted = admitting.events("connection.admitted")[0]
    assert admitted["pid"] == os.getpid()
    assert (admitted["uid"], admitted["gid"]) == (os.getuid(), os.getgid())


def test_a_refused_call_is_logged_with_the_process_that_made_it(admitting: Plugin) -> None:
    with admitting.keys() as keys, pytest.raises(grpc.RpcError):
        keys.GenerateDEK(kms.GenerateDEKRequest(kek_kid=b"none"), timeout=10)
    refused = admitting.events("rpc.refused")[-1]
    assert refused["caller"] == {
        "kind": "local",
        "pid": os.getpid(),
        "uid": os.getuid(),
        "gid": os.getgid(),
    }


def test_the_socket_behind_the_front_has_no_file(admitting: Plugin) -> None:
    folder = admitting.socket.parent
    assert [entry.name for entry in folder.iterdir() if entry.name.startswith(".front")] == []
    sockets = [entry for entry in folder.iterdir() if stat.S_ISSOCK(entry.lstat().st_mode)]
    assert sockets == [admitting.socket]
    assert stat.S_IMODE(admitting.socket.lstat().st_mode) == 0o660


def test_large_messages_pass_both_ways(admitting: Plugin) -> None:
    with admitting.keys() as keys:
        keys.GenerateKEK(kms.GenerateKEKRequest(kek_kid=b"large"), timeout=10)
        dek = keys.GenerateDEK(kms.GenerateDEKRequest(kek_kid=b"large"), timeout=10)
        plaintext = os.urandom(400_000)
        sealed = keys.AuthenticatedEncrypt(
            kms.AuthenticatedEncryptRequest(
                kek_kid=b"large", encrypted_dek_blob=dek.encrypted_dek_blob, plaintext=plaintext
            ),
            timeout=10,
        )
        opened = keys.AuthenticatedDecrypt(
            kms.AuthenticatedDecryptRequest(
                kek_kid=b"large",
                encrypted_dek_blob=dek.encrypted_dek_blob,
                ciphertext=sealed.ciphertext,
            ),
            timeout=10,
        )
    assert opened.plaintext == plaintext


def test_one_uid_has_a_bounded_number_of_connections(admitting: Plugin) -> None:
    held = []
    try:
        for _ in range(140):
            client = socket.socket(socket.AF_UNIX)
            client.connect(str(admitting.socket))
            held.append(client)
        admitting.await_event("connection.refused")
        refused = admitting.events("connection.refused")[0]
        assert "too many connections" in refused["message"]
        assert refused["uid"] == os.getuid()
    finally:
        for client in held:
            client.close()
    admitting.wait_until(lambda: admitting.health() == SERVING, "service after the flood")


def test_a_killed_front_is_replaced_and_the_socket_stays(admitting: Plugin) -> None:
    before, inode = front_of(admitting), admitting.socket.lstat().st_ino
    os.kill(before, signal.SIGKILL)
    admitting.await_event("front.ended")
    admitting.await_health(SERVING)
    assert front_of(admitting) != before
    assert admitting.socket.lstat().st_ino == inode


@pytest.mark.parametrize("flag", ["--allow-uid", "--allow-gid"])
def test_a_process_that_is_not_on_the_list_is_refused_and_logged(
    shared_hsm: SoftHsm, folder: Path, flag: str
) -> None:
    with allowing(shared_hsm, folder, flag, str(STRANGER)) as plugin:
        with plugin.keys() as keys, pytest.raises(grpc.RpcError) as caught:
            keys.GenerateKEK(kms.GenerateKEKRequest(kek_kid=b"a"), timeout=10)
        assert cast("grpc.Call", caught.value).code() is grpc.StatusCode.UNAVAILABLE
        refused = plugin.events("connection.refused")[0]
        assert (refused["pid"], refused["uid"]) == (os.getpid(), os.getuid())
        assert plugin.events("connection.admitted") == []
        told = plugins.command(["health"], environment={"SOCKET": str(plugin.socket)})
        assert told.returncode == 1
        assert "--allow-uid" in told.stderr


def test_a_process_is_admitted_by_its_group_or_a_supplementary_one(
    shared_hsm: SoftHsm, folder: Path
) -> None:
    group = next((gid for gid in os.getgroups() if gid != os.getgid()), os.getgid())
    with allowing(shared_hsm, folder, "--allow-gid", str(group)) as plugin:
        plugin.await_health(SERVING)


def test_the_front_ends_with_a_killed_server(shared_hsm: SoftHsm, folder: Path) -> None:
    with allowing(shared_hsm, folder, "--allow-uid", "any") as plugin:
        front = front_of(plugin)
        plugin.kill()
        # Reaped by whoever inherits it; a zombie runs no more.
        subprocess.run([sys.executable, "-c", _AWAIT_END, str(front)], timeout=10, check=True)


_AWAIT_END = """
import pathlib, sys, time
state = pathlib.Path(f"/proc/{sys.argv[1]}/stat")
try:
    while state.read_text().rpartition(")")[2].split()[0] not in "ZX":
        time.sleep(0.01)
except OSError:
    pass
"""
