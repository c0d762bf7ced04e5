"""What is read from files: credentials and CA certificates."""

import asyncio
import threading
import time
from pathlib import Path

import pytest

from tests.support.pki import root
from vault_client.credentials import LoginRequest, read_login, read_secret
from vault_client.errors import CredentialsError, TlsError
from vault_client.settings import CaFile, KubernetesLogin, TokenFileLogin
from vault_client.threads import Worker
from vault_client.trust import TrustSource


def test_a_login_is_read_anew_each_time_and_stripped(tmp_path: Path) -> None:
    path = tmp_path / "jwt"
    login = KubernetesLogin("m", "r", path, None)
    for content in ("one\n", "two"):
        path.write_text(content)
        request = read_login(login)
        assert isinstance(request, LoginRequest)
        token = request.body["jwt"]
        assert not isinstance(token, str)
        assert token.reveal() == content.strip().encode()
        request.wipe()
        assert token.reveal() == bytes(3)


@pytest.mark.parametrize("content", [b"", b" \n", b"\xff\xfe", b"x" * 70_000])
def test_a_file_that_holds_no_credential_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "token").write_bytes(content)
    with pytest.raises(CredentialsError, match="empty or not text"):
        read_login(TokenFileLogin(tmp_path / "token"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CredentialsError, match="cannot be read from"):
        read_secret(tmp_path / "none", "the token")


def trust(path: Path) -> TrustSource:
    return TrustSource(CaFile(path), refresh_seconds=60, clock=lambda: 0.0)


def test_a_ca_file_is_followed_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    source = trust(path)
    for ca in (root("One"), root("Two")):
        path.write_bytes(ca.pem)
        assert source.certificates() == ca.pem


def test_a_ca_file_that_turns_bad_leaves_the_last_good_certificates(tmp_path: Path) -> None:
    path, ca = tmp_path / "ca.pem", root("One")
    path.write_bytes(ca.pem)
    source = trust(path)
    source.certificates()
    path.write_text("half a certif")
    assert source.certificates() == ca.pem
    assert source.problem is not None
    path.write_bytes(ca.pem)
    source.certificates()
    assert source.problem is None


def test_a_ca_file_that_never_was_good_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TlsError, match="cannot be read"):
        trust(tmp_path / "ca.pem").certificates()
    (tmp_path / "ca.pem").write_text("none")
    with pytest.raises(TlsError, match="holds no PEM certificate"):
        trust(tmp_path / "ca.pem").certificates()


def test_without_a_source_the_bundled_roots_are_used() -> None:
    assert TrustSource(None, refresh_seconds=60, clock=lambda: 0.0).certificates() is None


async def test_a_call_off_the_loop_returns_or_raises_what_it_did() -> None:
    worker = Worker()
    assert await worker.run(lambda: 7, 5) == 7
    with pytest.raises(ZeroDivisionError):
        await worker.run(lambda: 1 // 0, 5)


async def test_a_call_that_outlives_its_deadline_keeps_the_next_one_waiting() -> None:
    worker, release = Worker(), threading.Event()
    with pytest.raises(TimeoutError):
        await worker.run(release.wait, 0.05)
    with pytest.raises(TimeoutError):
        await worker.run(lambda: 7, 0.05)
    release.set()
    assert await worker.run(lambda: 7, 5) == 7


async def test_a_cancelled_wait_leaves_the_call_to_end_by_itself() -> None:
    worker, release = Worker(), threading.Event()
    task = asyncio.create_task(worker.run(release.wait, 5))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    release.set()
    assert await worker.run(lambda: 7, 5) == 7


async def test_of_two_calls_that_wait_one_goes_after_the_other() -> None:
    worker, under_way, most = Worker(), 0, 0

    def call() -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        time.sleep(0.02)
        under_way -= 1

    await asyncio.gather(*(worker.run(call, 5) for _ in range(4)))
    assert most == 1


async def test_a_thread_that_cannot_be_started_blocks_no_later_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Worker()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", _no_thread)
        with pytest.raises(RuntimeError):
            await worker.run(lambda: 7, 5)
    assert await worker.run(lambda: 7, 5) == 7


def _no_thread(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")
