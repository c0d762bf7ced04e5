"""Serves where no agent comes here: by istiod's folder, and by the signer of its requests."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from istiod_ca_bridge.adoption import Adoption
from istiod_ca_bridge.authority import Authority
from istiod_ca_bridge.errors import BridgeError
from istiod_ca_bridge.log import EventLog
from istiod_ca_bridge.metrics import Metrics
from istiod_ca_bridge.plug_in_dir import PlugInDirectory
from istiod_ca_bridge.signer import Signer

_RETRY_SECONDS = 2.0
_LOOK_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class IndirectServing:
    """Takes up each authority that is adopted."""

    adoption: Adoption
    plug_in: PlugInDirectory | None
    write_roots: Callable[[Authority], Awaitable[None]]
    publish_roots: Callable[[Authority], None]
    log: EventLog
    metrics: Metrics

    async def run(self) -> None:
        """Run until cancelled.

        Now and then the folder is looked at, and mended when it was changed by hand.
        """
        adoption = self.adoption
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(adoption.changed.wait(), _LOOK_SECONDS)
            is_new = adoption.changed.is_set()
            adoption.changed.clear()
            authority, key = adoption.authority, adoption.key
            if authority is None or key is None:
                continue
            try:
                await self._plug_in_now(authority, key)
                if is_new:
                    await self.write_roots(authority)
            except (BridgeError, OSError) as error:
                self.log.warning("authority.delayed", reason=str(error))
                adoption.served = None
                await asyncio.sleep(_RETRY_SECONDS)
                adoption.changed.set()
                continue
            adoption.served = authority
            if is_new:
                self.metrics.serves(authority)
                self.publish_roots(authority)

    async def _plug_in_now(self, authority: Authority, key: Signer) -> None:
        if self.plug_in is not None and await asyncio.to_thread(
            self.plug_in.publish, authority, key
        ):
            self.log.info("plug_in.written", not_after=authority.not_after)
