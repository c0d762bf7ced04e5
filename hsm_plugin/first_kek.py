"""The KEK that `serve` was told of: looked for, or made, when the token is first there."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from hsm_plugin import kek_blobs
from hsm_plugin.errors import HsmPluginError, KeyNotFoundError
from hsm_plugin.kek_blobs import Purpose
from hsm_plugin.keys import AsyncKeyStore, KekCipher
from hsm_plugin.log import event

_FIRST_PAUSE_SECONDS = 1.0
_LAST_PAUSE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class FirstKek:
    """One KEK."""

    kek_id: str
    create: bool
    store: Callable[[], AsyncKeyStore]
    cipher: KekCipher = KekCipher.GCM

    async def run(self, usable: asyncio.Event) -> None:
        """Return when the KEK is in the token; `usable` is set while the token can be asked."""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            await usable.wait()
            if await self._look():
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LAST_PAUSE_SECONDS)

    async def _look(self) -> bool:
        kek_id = self.kek_id.encode()
        try:
            if self.create:
                made = await self.store().generate_kek(kek_id, self.cipher)
            else:
                made = False
                await kek_blobs.wrap(self.store(), self.cipher, kek_id, b"is it there", Purpose.DEK)
        except KeyNotFoundError as error:
            event(
                "kek.missing",
                str(error),
                level=logging.ERROR,
                hint="make it with generate-kek, or start with --auto-create",
            )
        except HsmPluginError as error:
            event("kek.unknown", str(error), level=logging.ERROR, hint=error.hint)
        else:
            event("kek.made" if made else "kek.found", f"KEK ID: {self.kek_id}")
            return True
        return False
