"""Serves agents: a server certificate of the CA in force, renewed in time, and the TLS front."""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from istiod_ca_bridge.adoption import Adoption
from istiod_ca_bridge.authority import Authority
from istiod_ca_bridge.errors import BridgeError
from istiod_ca_bridge.ledger import Ledger, of_server
from istiod_ca_bridge.log import EventLog
from istiod_ca_bridge.metrics import Metrics
from istiod_ca_bridge.server_certificate import ServerCertificate, make_server_certificate
from istiod_ca_bridge.setting_values import Address
from istiod_ca_bridge.tls_front import TlsFront

_RETRY_SECONDS = 2.0
_LONGEST_WAIT_SECONDS = 5.0
"""The clock is looked at this often, for it may jump."""


@dataclass(frozen=True, slots=True)
class TlsServing:
    """Takes up each authority that is adopted."""

    adoption: Adoption
    front: TlsFront
    names: tuple[str, ...]
    write_roots: Callable[[Authority], Awaitable[None]]
    publish_roots: Callable[[Authority], None]
    clock: Callable[[], datetime]
    log: EventLog
    metrics: Metrics
    ledger: Ledger | None = None

    async def run(self, listener: socket.socket) -> None:
        """Have a server certificate first, then listen, and renew for ever."""
        certificate = await self._next(None)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.front.serve(listener))
            address = Address(*listener.getsockname()[:2])
            self.log.info("ca_server.listening", address=str(address))
            while True:
                certificate = await self._next(certificate)

    async def _next(self, now_served: ServerCertificate | None) -> ServerCertificate:
        """Wait until another certificate is due, and serve with it."""
        await self._due(now_served)
        adoption = self.adoption
        while True:
            adopted = adoption.authority
            assert adopted is not None  # noqa: S101 - _due waits for it
            adoption.changed.clear()
            try:
                certificate = await make_server_certificate(adopted, self.names, self.clock())
                if self.ledger is not None:
                    await self.ledger.record(of_server(certificate.leaf, adopted, self.names))
                await self.write_roots(adopted)
            except (BridgeError, OSError) as error:
                self.log.warning("server_certificate.delayed", reason=str(error))
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            before = adoption.served.chain.roots if adoption.served else ()
            self.front.use(
                certificate.context, recheck_clients=not set(before) <= set(adopted.chain.roots)
            )
            adoption.served = adopted
            self.metrics.serves(adopted, certificate.not_after)
            self.publish_roots(adopted)
            self.log.info(
                "server_certificate.renewed",
                names=",".join(self.names),
                not_after=certificate.not_after,
            )
            return certificate

    async def _due(self, served: ServerCertificate | None) -> None:
        """Return when there is a new authority, or half of the certificate's life is over.

        One made while the clock was ahead begins in the future once the clock is right again:
        then another is due at once.
        """
        while not self.adoption.changed.is_set():
            left = timedelta(days=1) if served is None else served.due_in(self.clock())
            if left <= timedelta(0):
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(
                    self.adoption.changed.wait(),
                    min(left.total_seconds(), _LONGEST_WAIT_SECONDS),
                )
