import asyncio
import base64
import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import yaml

from istiod_ca_bridge.authn import Caller
from istiod_ca_bridge.errors import CorruptSecretError, UnauthenticatedError
from istiod_ca_bridge.remote_clusters import RemoteClusters
from istiod_ca_bridge.remote_kubeconfig import RemoteApi, remote_api
from tests.support import pki
from tests.unit.istiod_ca_bridge.doubles import recorded_log

CA = pki.root().pem


def kubeconfig(
    user: dict[str, Any] | None = None, cluster: dict[str, Any] | None = None, **changes: Any
) -> bytes:
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "east",
        "contexts": [{"name": "east", "context": {"cluster": "east", "user": "east"}}],
        "clusters": [
            {
                "name": "east",
                "cluster": {
                    "server": "https://east.test:6443",
                    "certificate-authority-data": base64.b64encode(CA).decode(),
                }
                | (cluster or {}),
            }
        ],
        "users": [{"name": "east", "user": {"token": "t0p"} if user is None else user}],
    }
    return yaml.safe_dump(document | changes).encode()


def test_server_ca_and_token_are_taken_from_a_remote_secret_and_the_token_is_not_shown() -> None:
    api = remote_api(kubeconfig())

    assert (api.server, api.ca_pem, api.token) == ("https://east.test:6443", CA.decode(), "t0p")
    assert "t0p" not in repr(api)


@pytest.mark.parametrize(
    "server",
    [
        *("https://east.test", "https://10.0.0.1:6443", "https://[::1]:6443"),
        *("https://EAST_1.test:1/k8s/clusters/c-m-1", "https://rancher.test/k8s/clusters/local"),
    ],
)
def test_every_form_of_an_address_is_taken(server: str) -> None:
    assert remote_api(kubeconfig(cluster={"server": server})).server == server


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"user": {"token": "t", "exec": {"command": "/bin/sh"}}}, "has exec, which"),
        ({"user": {"auth-provider": {"name": "gcp"}}}, "has auth-provider, which"),
        ({"user": {"tokenFile": "/etc/passwd"}}, "has tokenFile, which"),
        ({"user": {"client-key": "/key"}}, "has client-key, which"),
        ({"user": {"client-key-data": "AAAA"}}, "has client-key-data, which"),
        ({"user": {}}, "lacks token"),
        ({"user": {"token": ["t"]}}, "lacks token"),
        ({"cluster": {"certificate-authority": "/ca"}}, "has certificate-authority, which"),
        ({"cluster": {"insecure-skip-tls-verify": True}}, "has insecure-skip-tls-verify, which"),
        ({"cluster": {"proxy-url": "http://p"}}, "has proxy-url, which"),
        ({"cluster": {"server": "http://east.test"}}, "no https"),
        ({"cluster": {"server": "file:///etc/passwd"}}, "no https"),
        ({"cluster": {"server": "https://["}}, "no https"),
        ({"cluster": {"server": "https://east.test:99999"}}, "no https"),
        ({"cluster": {"server": "https://u:p@east.test"}}, "no https"),
        ({"cluster": {"server": "https://east.test\r\nX: y"}}, "no https"),
        ({"cluster": {"server": f"https://{'h' * 64}.test"}}, "no https"),
        ({"cluster": {"server": "https://[10.0.0.1]"}}, "no https"),
        ({"cluster": {"certificate-authority-data": "%"}}, "malformed"),
        ({"cluster": {"certificate-authority-data": "UEVN"}}, "malformed"),
        ({"cluster": {"tls-server-name": f"{'h' * 64}.test"}}, "malformed"),
        ({"user": {"token": "t\r\nX-Remote-User: admin"}}, "token is malformed"),
        ({"user": {"token": "é"}}, "token is malformed"),
        ({"current-context": "west"}, "no context"),
        ({"users": []}, "no user"),
        ({"clusters": "x"}, "no cluster"),
    ],
)
def test_a_kubeconfig_with_anything_else_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(CorruptSecretError, match=reason):
        remote_api(kubeconfig(**changes))


@pytest.mark.parametrize("text", [b"", b"[", b"1", b"\xff", b"a: &a [*a]", b"x" * (257 << 10)])
def test_what_is_no_kubeconfig_is_refused(text: bytes) -> None:
    with pytest.raises(CorruptSecretError):
        remote_api(text)


class Tokens:
    """A cluster that knows nobody."""

    def __init__(self, api: RemoteApi) -> None:
        self.api = api
        self.closed = False

    async def authenticate(self, _token: str) -> Caller:
        raise UnauthenticatedError(self.api.server)

    def close(self) -> None:
        self.closed = True


class Secrets:
    """Remote secrets in memory."""

    def __init__(self) -> None:
        self.now: dict[str, dict[str, bytes]] = {}

    async def kubeconfigs(self) -> Mapping[str, Mapping[str, bytes]]:
        return self.now


async def eventually(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen within 5 s")


async def test_clusters_come_change_and_go_with_their_secrets() -> None:
    secrets, made = Secrets(), list[Tokens]()
    log, lines = recorded_log()

    def connect(api: RemoteApi) -> Tokens:
        made.append(Tokens(api))
        return made[-1]

    remotes = RemoteClusters(secrets, "own", connect, log, poll_seconds=0.001)
    task = asyncio.create_task(remotes.run())

    secrets.now = {"b": {"east": kubeconfig(), "own": kubeconfig()}}
    await eventually(lambda: remotes.tokens_of("east") is not None)
    assert remotes.tokens_of("own") is None
    first = made[0]
    secrets.now = secrets.now | {"c": {"east": kubeconfig(user={"token": "other"})}}
    await asyncio.sleep(0.05)
    assert remotes.tokens_of("east") is first

    secrets.now = {"b": {"east": kubeconfig(user={"token": "new"})}}
    await eventually(lambda: len(made) == 2)
    assert first.closed
    secrets.now = {"b": {"east": kubeconfig(user={"exec": {"command": "sh"}})}}
    await eventually(lambda: remotes.tokens_of("east") is None)
    await asyncio.sleep(0.05)
    assert sum("remote_cluster.refused" in line for line in lines) == 1
    secrets.now = {"b": {"east": kubeconfig()}}
    await eventually(lambda: remotes.tokens_of("east") is not None)
    secrets.now = {}
    await eventually(lambda: remotes.tokens_of("east") is None)
    assert all(tokens.closed for tokens in made)

    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
