"""Whether the CA could sign now: asked of the key itself, told by gRPC health."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime

from istiod_ca_bridge.authority import Authority
from istiod_ca_bridge.conditions import Conditions, Kind
from istiod_ca_bridge.errors import BridgeError
from istiod_ca_bridge.log import EventLog
from istiod_ca_bridge.signer import Signer, is_signature

_PROBE = b"istiod-ca-bridge readiness probe; this is no certificate"
_INTERVAL_SECONDS = 5.0
_WAITING_INTERVAL_SECONDS = 0.5


class Readiness:
    """Looks often while not ready, and every few seconds while ready."""

    def __init__(
        self,
        serving: Callable[[], Authority | None],
        publish: Callable[[bool], Awaitable[None]],
        clock: Callable[[], datetime],
        log: EventLog,
        conditions: Conditions | None = None,
    ) -> None:
        self._conditions = conditions or Conditions(clock)
        self._serving = serving
        self._publish = publish
        self._clock = clock
        self._log = log

    async def watch(self) -> None:
        """Publish each change until cancelled."""
        told = "starting"
        while True:
            word, reason = await self._reason()
            self._conditions.set(
                Kind.READY, word, reason or "the CA key has just signed", status=not reason
            )
            if reason != told:
                await self._publish(not reason)
                if reason:
                    self._log.warning("health.not_serving", reason=reason)
                else:
                    self._log.info("health.serving")
                told = reason
            await asyncio.sleep(_WAITING_INTERVAL_SECONDS if reason else _INTERVAL_SECONDS)

    async def _reason(self) -> tuple[str, str]:
        """Return in a word and in full why the CA could not sign now; "" when it could."""
        authority = self._serving()
        if authority is None:
            return "NoCertificate", "the CA has no certificate yet"
        if self._clock() >= authority.not_after:
            return "Expired", f"the CA certificate expired at {authority.not_after:%FT%TZ}"
        if self._clock() < authority.chain.not_before:
            begins = f"{authority.chain.not_before:%FT%TZ}"
            return (
                "NotYetValid",
                f"the CA certificate is not valid before {begins}: is the clock right?",
            )
        fault = await _cannot_sign(authority.signer)
        return ("CannotSign" if fault else "Serving"), fault


async def _cannot_sign(signer: Signer) -> str:
    try:
        signature = await signer.sign(_PROBE)
    except BridgeError as error:
        return str(error)
    if is_signature(signer.public_key, signature, _PROBE):
        return ""
    return "the CA key's signature does not verify"
