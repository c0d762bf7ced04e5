"""The watch keeps the latest of roots and keys, and leaves a lost token alone."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509

from hsm_plugin import watch as watch_module
from hsm_plugin.breaker import Breaker
from hsm_plugin.errors import HsmUnavailableError
from hsm_plugin.keys import KeyAlgorithm, ListedKey, SigningKey, TrustedRoot
from hsm_plugin.sightings import Sightings
from hsm_plugin.watch import Watch
from hsm_plugin.worker_snapshot import WorkerSnapshot
from tests.support import pki


class Token:
    """The part of the token's client that the watch uses, and the token of one call."""

    def __init__(self) -> None:
        self.breaker = Breaker("mesh")
        self.root = pki.root("Mesh Root").der
        self.asked: list[str] = []
        self.is_gone = False
        self.fault: Exception | None = None

    async def snapshot(self) -> tuple[int, WorkerSnapshot]:
        if self.is_gone:
            raise HsmUnavailableError("gone")
        return 7, WorkerSnapshot(1, 8)

    def bound(self, _lane: bytes, _deadline: float) -> "Token":
        return self

    async def roots(self) -> list[TrustedRoot]:
        self.asked.append("roots")
        if self.fault is not None:
            raise self.fault
        return [TrustedRoot(b"mesh-root", b"", self.root)]

    async def signing_keys(self) -> list[ListedKey]:
        self.asked.append("keys")
        usable = SigningKey(b"ca", KeyAlgorithm.ECDSA_P256, b"")
        return [ListedKey(b"ca", usable), ListedKey(b"old", None, "it can be extracted")]


@pytest.fixture
def token() -> Token:
    return Token()


def watch(token: Token, *certificates: Path) -> Watch:
    return Watch(token, Sightings(), certificates)  # type: ignore[arg-type] # the part it uses


async def test_roots_and_keys_are_seen_once_the_token_is_usable(token: Token) -> None:
    watching = watch(token)
    await watching.look()
    assert token.asked == []
    assert watching.sightings.worker is not None
    token.breaker.close()
    await watching.look()
    end = x509.load_der_x509_certificate(token.root).not_valid_after_utc
    assert watching.sightings.roots == {"mesh-root": end.timestamp()}
    assert (watching.sightings.usable_keys, watching.sightings.unusable_keys) == (1, 1)


async def test_the_token_is_not_asked_again_at_once(token: Token) -> None:
    token.breaker.close()
    watching = watch(token)
    await watching.look()
    await watching.look()
    assert token.asked == ["roots", "keys"]


async def test_what_nobody_foresaw_ends_no_watch_and_is_told_by_its_type(
    token: Token, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "SNAPSHOT_SECONDS", 0.001)
    token.fault = ValueError("PIN 1234")
    token.breaker.close()
    running = asyncio.create_task(watch(token).run())
    try:
        async with asyncio.timeout(10):
            while "keys" not in token.asked:  # noqa: ASYNC110 - the list is no event
                await asyncio.sleep(0.001)
    finally:
        running.cancel()
    assert token.asked == ["roots", "keys"]
    assert "unforeseen ValueError" in caplog.text
    assert "1234" not in caplog.text


async def test_a_worker_that_does_not_answer_leaves_the_last_look(token: Token) -> None:
    watching = watch(token)
    await watching.look()
    token.is_gone = True
    await watching.refresh()
    with pytest.raises(HsmUnavailableError):
        await watching.look()
    assert watching.sightings.worker == WorkerSnapshot(1, 8)


async def test_a_watched_file_that_holds_no_certificate_ends_at_zero(
    token: Token, tmp_path: Path
) -> None:
    good, bad = tmp_path / "good.pem", tmp_path / "bad.pem"
    good.write_bytes(pki.root("Client").pem)
    bad.write_bytes(b"no certificate")
    watching = watch(token, good, bad, tmp_path / "none.pem")
    await watching.look()
    seen = watching.sightings.certificates
    assert seen[str(good)] > datetime.now(UTC).timestamp()
    assert seen[str(bad)] == seen[str(tmp_path / "none.pem")] == 0


@pytest.mark.parametrize("name", ["certificate-of-version-9.pem", "certificate-truncated.der"])
async def test_a_watched_file_that_is_no_sound_certificate_does_not_end_the_watch(
    token: Token, name: str
) -> None:
    path = Path(__file__).parents[2] / "corpus" / name
    token.breaker.close()
    watching = watch(token, path)
    await watching.look()
    assert watching.sightings.certificates == {str(path): 0.0}
    assert token.asked == ["roots", "keys"]
