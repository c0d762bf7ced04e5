"""Keeps the token connected: finds it, watches it, finds it again, and never burns a PIN."""

import asyncio
import logging
import os
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

from hsm_plugin.errors import HsmPluginError, PinRefusedError
from hsm_plugin.keys import TokenIdentity
from hsm_plugin.log import event

_POLL_SECONDS = 0.25
_PROBE_SECONDS = 10.0
_RECHECK_SECONDS = 60.0
"""How long after a refusal the token's state is read again, although the PIN did not change."""
_FIRST_BACKOFF_SECONDS = 0.5
_LAST_BACKOFF_SECONDS = 15.0


class TokenState(Enum):
    """Whether calls can reach the token."""

    USABLE = "usable"
    LOST = "lost"


class Connectable(Protocol):
    """The part of a token's store that this module drives; every call blocks."""

    @property
    def is_connected(self) -> bool:
        """True while the token is usable."""

    def connect(self) -> TokenIdentity:
        """Find the token and log in."""

    def probe(self) -> None:
        """Return when the token answers."""


@dataclass(slots=True)
class Connection:
    """The loop, and what it last met."""

    store: Connectable
    pin_file: Path
    on_change: Callable[[TokenState], Awaitable[None]]

    async def run(self) -> None:
        """Never returns; cancel it."""
        backoff = _FIRST_BACKOFF_SECONDS
        while True:
            seen = _fingerprint(self.pin_file)
            try:
                identity = await asyncio.to_thread(self.store.connect)
            except PinRefusedError as error:
                _log_failure(error)
                await self._wait_for_new_pin(seen)
            except HsmPluginError as error:
                _log_failure(error)
                await asyncio.sleep(backoff * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
                backoff = min(backoff * 2, _LAST_BACKOFF_SECONDS)
            else:
                backoff = _FIRST_BACKOFF_SECONDS
                _log_success(identity, self.pin_file)
                await self.on_change(TokenState.USABLE)
                await self._watch()
                await self.on_change(TokenState.LOST)

    async def _watch(self) -> None:
        """Return when the token is lost."""
        idle = 0.0
        while self.store.is_connected:
            await asyncio.sleep(_POLL_SECONDS)
            idle += _POLL_SECONDS
            if idle >= _PROBE_SECONDS:
                idle = 0.0
                try:
                    await asyncio.to_thread(self.store.probe)
                except HsmPluginError as error:
                    _log_failure(error)
        event("token.lost", "The token is lost; looking for it", level=logging.WARNING)

    async def _wait_for_new_pin(self, seen: tuple[int, ...] | None) -> None:
        waited = 0.0
        while waited < _RECHECK_SECONDS and _fingerprint(self.pin_file) == seen:
            await asyncio.sleep(_POLL_SECONDS)
            waited += _POLL_SECONDS


def _fingerprint(path: Path) -> tuple[int, ...] | None:
    try:
        status = os.stat(path)  # noqa: PTH116 - follows the set's symbolic link
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


def _log_success(identity: TokenIdentity, pin_file: Path) -> None:
    event("pin.loaded", f"Loaded P11 PIN from file: {pin_file}")
    event(
        "token.connected",
        f'Connected to token "{identity.label}"',
        serial=identity.serial,
        model=identity.model,
        slot=identity.slot_id,
    )


def _log_failure(error: HsmPluginError) -> None:
    event("token.unavailable", str(error), level=logging.ERROR, hint=error.hint)
