"""Keeps the token connected: starts the worker, finds the token, watches it, finds it again.

And never burns a PIN: after a refusal it waits for another PIN, or for the token's own state to
change. Pauses between attempts grow, with jitter, until a connection has held for a while.
"""

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Protocol

from hsm_plugin.breaker import Backoff, Breaker
from hsm_plugin.errors import HsmPluginError, ModuleError, PinRefusedError
from hsm_plugin.keys import TokenIdentity
from hsm_plugin.log import event
from hsm_plugin.worker_process import Loss, WorkerProcess

_POLL_SECONDS = 0.25
_PROBE_SECONDS = 10.0
_RECHECK_SECONDS = 60.0
"""How long after a refusal the token's state is read again, although the PIN did not change."""
_REAP_SECONDS = 1.0


class TokenState(Enum):
    """Whether calls can reach the token."""

    USABLE = "usable"
    LOST = "lost"


class Lost(Protocol):
    """Why a connection ended."""

    @property
    def loss(self) -> Loss:
        """What is gone."""

    @property
    def reason(self) -> str:
        """In words."""


class Connectable(Protocol):
    """The part of the token's client that this module drives."""

    breaker: Breaker

    @property
    def worker(self) -> WorkerProcess | None:
        """The worker, running or ended."""

    async def connect(self) -> TokenIdentity:
        """Find the token and log in, in a new worker when none runs."""

    @property
    def rank(self) -> int:
        """The place of the token in use in the list of tokens."""

    async def replace(self) -> TokenIdentity:
        """Log in with what the files hold now, in a new worker that then takes over."""

    async def try_pin(self, pin_file: Path, in_use: Path | None) -> bool:
        """Tell whether a login was made with this file's PIN, beside the connection."""

    async def prefer(self) -> TokenIdentity:
        """Change over to a token that comes before the one in use."""

    def pause(self, seconds: float) -> None:
        """Tell callers how long the token is left alone."""

    async def probe(self) -> None:
        """Return when the token answers."""

    async def lost(self) -> Lost:
        """Return when the connection is gone."""

    def kill_if_hung(self) -> None:
        """End a worker that hangs."""


@dataclass(slots=True)
class Connection:
    """The loop, and what it last met."""

    token: Connectable
    pin_file: Path
    on_change: Callable[[TokenState], Awaitable[None]]
    return_seconds: float = 30.0
    """How often a better token is looked for while a stand-by is in use."""
    _backoff: Backoff = field(default_factory=Backoff)
    _logging_in: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by whoever tries the PIN: two at once could spend two attempts on one value."""
    _attempted: asyncio.Event = field(default_factory=asyncio.Event)
    """Set, and replaced, after each attempt of the loop."""
    _refused: tuple[PinRefusedError, tuple[int, ...] | None] | None = None
    """The last attempt's refusal, and the PIN file that it was about."""

    _in_use: tuple[int, ...] | None = None
    """The PIN file as it was when its PIN was taken."""

    async def reload(self) -> None:
        """Return when the token is used with what the files hold now.

        PinRefusedError when the token refuses the PIN; the connection in use, if any, stays.
        """
        if self.token.breaker.is_open:
            await self._connected()
            return
        async with self._logging_in:
            seen = _fingerprint(self.pin_file)
            identity = await self.token.replace()
            self._in_use = seen
        _log_success(identity, self.pin_file)

    async def try_pin(self, pin_file: Path) -> bool:
        """Return whether the token took this file's PIN; False when it is the one in use.

        That one is not tried. PinRefusedError when the token refuses it, now or before.
        """
        async with self._logging_in:
            kept = not self.token.breaker.is_open and _fingerprint(self.pin_file) == self._in_use
            return await self.token.try_pin(pin_file, self.pin_file if kept else None)

    async def _connected(self) -> None:
        """Return when the loop has connected; PinRefusedError when it waits for another PIN."""
        while True:
            if self._refused and self._refused[1] == _fingerprint(self.pin_file):
                raise self._refused[0]
            await self._attempted.wait()
            if not self.token.breaker.is_open:
                return

    async def run(self) -> None:
        """Never returns; cancel it. Raises ModuleError when the module cannot be loaded."""
        guard = asyncio.create_task(self._guard_against_hangs())
        try:
            while True:
                await self._pause()
                await self._reap()
                await self._connect_and_watch()
        finally:
            guard.cancel()

    async def _connect_and_watch(self) -> None:
        seen = _fingerprint(self.pin_file)
        try:
            identity = await self._connect(seen)
        except PinRefusedError as error:
            self._failed(error, time.monotonic() + _POLL_SECONDS)
            await self._wait_for_new_pin(seen)
        except ModuleError:
            raise
        except HsmPluginError as error:
            self._failed(error, time.monotonic())
            self._backoff.expect_trouble()
        else:
            _log_success(identity, self.pin_file)
            await self.on_change(TokenState.USABLE)
            await self._watch()
            await self.on_change(TokenState.LOST)

    async def _connect(self, seen: tuple[int, ...] | None) -> TokenIdentity:
        self._refused = None
        try:
            async with self._logging_in:
                identity = await self.token.connect()
                self._in_use = seen
                return identity
        except PinRefusedError as error:
            self._refused = (error, seen)
            raise
        finally:
            self._attempted.set()
            self._attempted = asyncio.Event()

    async def _watch(self) -> None:
        """Return when the connection is lost."""
        connected_at = time.monotonic()
        lost = asyncio.ensure_future(self.token.lost())
        back = asyncio.create_task(self._return_to_preferred())
        try:
            while not lost.done():
                await asyncio.wait({lost}, timeout=_PROBE_SECONDS)
                if not lost.done():
                    await self._probe()
        finally:
            lost.cancel()
            back.cancel()
            await asyncio.gather(back, return_exceptions=True)
        self._backoff.held(time.monotonic() - connected_at)
        if lost.result().loss is Loss.HSM:
            self._backoff.expect_trouble()
        event(
            "token.lost",
            "The token is lost; looking for it",
            level=logging.WARNING,
            reason=lost.result().reason,
        )

    async def _return_to_preferred(self) -> None:
        """Look for the tokens before the one in use, now and then. Never returns; cancel it."""
        while True:
            await asyncio.sleep(self.return_seconds)
            try:
                async with self._logging_in:
                    if self.token.rank:
                        _log_success(await self.token.prefer(), self.pin_file)
            except HsmPluginError as error:
                event("token.standby", f"A stand-by token stays in use: {error}")
            except Exception as error:  # noqa: BLE001 - it must go on; the type tells enough
                event(
                    "token.standby",
                    f"A stand-by token stays in use: unforeseen {type(error).__name__}",
                    level=logging.ERROR,
                )

    async def _probe(self) -> None:
        try:
            await self.token.probe()
        except HsmPluginError as error:
            _log_failure(error)

    async def _pause(self) -> None:
        pause = self._backoff.pause()
        if pause:
            self.token.pause(pause)
            await asyncio.sleep(pause)

    async def _reap(self) -> None:
        """Log how the worker ended, if it did."""
        worker = self.token.worker
        if worker is not None and not worker.is_running:
            code = await worker.reap(_REAP_SECONDS)
            event(
                "worker.ended",
                "The worker process ended; starting another",
                level=logging.ERROR,
                pid=worker.pid,
                exit_code=code,
            )

    async def _guard_against_hangs(self) -> None:
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            self.token.kill_if_hung()

    async def _wait_for_new_pin(self, seen: tuple[int, ...] | None) -> None:
        waited = 0.0
        while waited < _RECHECK_SECONDS and _fingerprint(self.pin_file) == seen:
            await asyncio.sleep(_POLL_SECONDS)
            waited += _POLL_SECONDS

    def _failed(self, error: HsmPluginError, retry_at: float) -> None:
        _log_failure(error)
        self.token.breaker.open(str(error), retry_at)


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
        sessions=identity.session_limit,
        rank=identity.rank,
    )
    if identity.passed_over:
        event(
            "token.passed_over",
            f"Tokens that come before it are not in use: {identity.passed_over}",
            level=logging.WARNING,
        )


def _log_failure(error: HsmPluginError) -> None:
    event("token.unavailable", str(error), level=logging.ERROR, hint=error.hint)
