"""A known caller's CSR -> its certificate: policy, a place at the key, signature, log."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from istiod_ca_bridge.admission import Admission
from istiod_ca_bridge.authn import Caller
from istiod_ca_bridge.authority import Authority, new_serial
from istiod_ca_bridge.errors import NotServingError
from istiod_ca_bridge.issue import issue
from istiod_ca_bridge.ledger import Ledger, of_workload
from istiod_ca_bridge.policy import (
    TtlPolicy,
    check_not_listed,
    grant_workload,
    granted_lifetime,
    requested_key,
)

if TYPE_CHECKING:
    from collections.abc import Container

    from cryptography import x509


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate, whose it is, and the CA that it goes out with."""

    leaf: "x509.Certificate"
    caller: Caller
    authority: Authority


class WorkloadIssuer:
    """Issues to whom the service has authenticated."""

    def __init__(
        self,
        ttl: TtlPolicy,
        authority: Callable[[], Authority | None],
        admission: Admission,
        clock: Callable[[], datetime],
        *,
        ledger: Ledger | None = None,
        blocked_keys: "Container[bytes]" = frozenset(),
    ) -> None:
        self._ttl = ttl
        self._authority = authority
        self._admission = admission
        self._clock = clock
        self._ledger = ledger
        self._blocked_keys = blocked_keys

    async def issue(self, csr: str, seconds: int, caller: Caller, gives_up: float) -> Issued:
        """Return the caller's certificate for the CSR's key.

        `gives_up`: when the caller does, on the monotonic clock.
        """
        key = requested_key(csr)
        lifetime = granted_lifetime(seconds, self._ttl, random.random())  # noqa: S311 - jitter
        async with self._admission.place(caller.identity.namespace, self._by(caller, gives_up)):
            authority = self._authority()
            if authority is None:
                raise NotServingError("the CA has no certificate yet")
            grant = grant_workload(
                key,
                caller.identity,
                lifetime,
                now=self._clock(),
                ca_not_after=authority.not_after,
                serial=new_serial(),
            )
            check_not_listed(grant.subject_key, self._blocked_keys, authority.own_keys)
            leaf = await issue(authority.issuer, grant)
        if self._ledger is not None:
            await self._ledger.record(of_workload(leaf, authority, caller))
        return Issued(leaf, caller, authority)

    def _by(self, caller: Caller, gives_up: float) -> float:
        """Return when it is too late: the caller gives up, or has no valid certificate left."""
        if caller.not_after is None:
            return gives_up
        left = (caller.not_after - self._clock()).total_seconds()
        return min(gives_up, time.monotonic() + left)
