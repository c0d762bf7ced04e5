"""Looks at the worker, the keys and the certificates now and then, for those who are asked."""

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509

from hsm_plugin.admission import Lane
from hsm_plugin.errors import HsmPluginError
from hsm_plugin.log import event
from hsm_plugin.sightings import Sightings
from hsm_plugin.token_client import TokenClient
from hsm_plugin.trust import MALFORMED, load_certificate

SNAPSHOT_SECONDS = 5.0
EXPIRY_SECONDS = 60.0
KEYS_SECONDS = 300.0
_CALL_SECONDS = 10.0
_REFRESH_SECONDS = 0.5
_LANE = Lane(b" watch")
_MAX_FILE_BYTES = 1 << 20


@dataclass(slots=True)
class Watch:
    """The loop. Lives on the event loop of the token's client."""

    token: TokenClient
    sightings: Sightings
    certificates: tuple[Path, ...]
    _due: dict[str, float] = field(default_factory=dict)

    async def run(self) -> None:
        """Never returns; cancel it."""
        while True:
            try:
                await self.look()
            except HsmPluginError:
                pass  # whoever uses the token is told
            except Exception as error:  # noqa: BLE001 - it must go on; the type tells enough
                event(
                    "watch.failed",
                    f"Not all could be looked at: unforeseen {type(error).__name__}",
                    level=logging.ERROR,
                )
            await asyncio.sleep(SNAPSHOT_SECONDS)

    async def look(self) -> None:
        """Look at whatever is due."""
        seen = self.sightings
        if self._is_due("certificates", EXPIRY_SECONDS):
            seen.certificates = {str(path): _expiry(path) for path in self.certificates}
        await self._look_at_worker()
        if self.token.breaker.is_open:
            return
        store = self.token.bound(_LANE, time.monotonic() + _CALL_SECONDS)
        if self._is_due("roots", EXPIRY_SECONDS):
            seen.roots = {
                _printable(root.ca_id): load_certificate(
                    root.certificate, "an imported root"
                ).not_valid_after_utc.timestamp()
                for root in await store.roots()
            }
        if self._is_due("keys", KEYS_SECONDS):
            keys = await store.signing_keys()
            faulty = [entry for entry in keys if entry.fault]
            seen.usable_keys, seen.unusable_keys = len(keys) - len(faulty), len(faulty)
            for entry in faulty:
                event("key.unusable", f"Not used: {entry.fault}", key=_printable(entry.key_id))

    async def refresh(self) -> None:
        """Return when the worker was looked at just now, or does not answer at once."""
        with contextlib.suppress(HsmPluginError, TimeoutError):
            async with asyncio.timeout(_REFRESH_SECONDS):
                await self._look_at_worker()

    async def _look_at_worker(self) -> None:
        snapshot = await self.token.snapshot()
        if snapshot is not None:
            self.sightings.see_worker(*snapshot)

    def _is_due(self, name: str, seconds: float) -> bool:
        now = time.monotonic()
        if now < self._due.get(name, now):
            return False
        self._due[name] = now + seconds
        return True


def _expiry(path: Path) -> float:
    """Return the end of the first certificate in Unix time; 0 when there is none to read."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES)
        return x509.load_pem_x509_certificates(content)[0].not_valid_after_utc.timestamp()
    except (OSError, *MALFORMED):
        return 0.0


def _printable(identifier: bytes) -> str:
    return identifier.decode("ascii", errors="backslashreplace")
