"""A key that cannot sign checkpoints is told, and the loop that asks it goes on."""

import asyncio
from dataclasses import dataclass, field

import pytest

from hsm_plugin import audit_checkpoints
from hsm_plugin.audit_chain import Head
from hsm_plugin.audit_checkpoints import Checkpoints
from hsm_plugin.breaker import Breaker
from hsm_plugin.keys import KeyAlgorithm, SigningKey


@dataclass
class Log:
    """The part of the log that is looked at before a checkpoint."""

    head: Head = field(default_factory=lambda: Head(5, "00" * 32))


class Token:
    """One whose key of the audit log somebody has put there, of a kind that is not used."""

    def __init__(self) -> None:
        self.breaker = Breaker("mesh")
        self.breaker.close()
        self.asked = 0

    def bound(self, _lane: bytes, _deadline: float) -> "Token":
        return self

    async def signing_key(self, key_id: bytes) -> SigningKey:
        self.asked += 1
        return SigningKey(key_id, KeyAlgorithm.ED25519, b"")


async def test_a_key_of_another_kind_ends_no_loop_and_is_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_checkpoints, "_POLL_SECONDS", 0.001)
    monkeypatch.setattr(audit_checkpoints, "_RETRY_SECONDS", 0.001)
    token = Token()
    checkpoints = Checkpoints(Log(), token, 1, 60.0)  # type: ignore[arg-type] # the parts it uses
    running = asyncio.create_task(checkpoints.run())
    try:
        async with asyncio.timeout(10):
            while token.asked < 3:  # noqa: ASYNC110 - the count is no event
                await asyncio.sleep(0.001)
    finally:
        running.cancel()
    assert "unforeseen KeyError" in caplog.text
