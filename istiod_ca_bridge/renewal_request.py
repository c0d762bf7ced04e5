"""The renewal's CSR: written by the leader when it is due, cleared away when it was heard."""

from collections.abc import Callable
from datetime import datetime

from istiod_ca_bridge.authority import Authority
from istiod_ca_bridge.ca_key import CaKeys
from istiod_ca_bridge.conditions import Conditions, Kind
from istiod_ca_bridge.log import EventLog
from istiod_ca_bridge.records import KeyRecord
from istiod_ca_bridge.renewal import RenewalPolicy, renewal_values, renews
from istiod_ca_bridge.store import CERTIFICATE_SECRET, RENEWAL_SECRET, SecretStore


class RenewalRequest:
    """Keeps istio-ca-cert-csr-renewal such that it is there exactly while renewal is due."""

    def __init__(
        self,
        policy: RenewalPolicy,
        store: SecretStore,
        ca_keys: CaKeys,
        conditions: Conditions,
        clock: Callable[[], datetime],
        log: EventLog,
    ) -> None:
        self._policy = policy
        self._store = store
        self._ca_keys = ca_keys
        self._conditions = conditions
        self._clock = clock
        self._log = log

    async def look(self, serving: Authority, key: KeyRecord) -> None:
        """Write or clear away the CSR, as the CA certificate that serves needs it."""
        certificate = serving.chain.ca
        now = self._clock()
        due_at = self._policy.due_at(certificate)
        stored = await self._store.read(RENEWAL_SECRET)
        if now < due_at:
            if stored is not None:
                await self._clear()
            self._conditions.set(
                Kind.FRESH, "Fresh", f"to be renewed from {due_at:%FT%TZ} on", status=True
            )
            return
        if stored is not None and not renews(stored, certificate):
            await self._clear()
            stored = None
        if stored is None:
            record = await self._ca_keys.new_request(key, serving.signer)
            await self._store.create(RENEWAL_SECRET, renewal_values(record, certificate))
            self._log.warning(
                "ca_renewal.requested",
                secret=RENEWAL_SECRET,
                not_after=certificate.not_valid_after_utc,
                hint=f"sign the CSR in {RENEWAL_SECRET}, write the chain to {CERTIFICATE_SECRET}",
            )
        late = self._policy.is_late(certificate, now)
        self._conditions.set(
            Kind.FRESH,
            "Expiring" if late else "RenewalRequested",
            f"the CA certificate expires at {certificate.not_valid_after_utc:%FT%TZ}: sign the "
            f"CSR in {RENEWAL_SECRET} and write the chain to {CERTIFICATE_SECRET}",
            status=False,
        )

    async def _clear(self) -> None:
        await self._store.delete(RENEWAL_SECRET)
        self._log.info("ca_renewal.done", secret=RENEWAL_SECRET)
