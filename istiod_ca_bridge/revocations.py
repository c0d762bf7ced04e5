"""The record of revoked certificates and the list made of it, kept in one Secret for all replicas.

Whoever writes does so on top of just the state that it read, so neither a revocation nor a number
of the list is ever lost or given twice.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from istiod_ca_bridge.authority import Authority
from istiod_ca_bridge.crl import (
    MAX_REVOCATIONS,
    Revocation,
    make_crl,
    number_of,
    read_revocations,
    why_anew,
    write_revocations,
)
from istiod_ca_bridge.der import MALFORMED
from istiod_ca_bridge.errors import BridgeError, RefusedRequestError, SecretExistsError
from istiod_ca_bridge.istiod_tls import ReplaceableSecret
from istiod_ca_bridge.log import EventLog

REVOCATIONS_SECRET = "istio-ca-revocations"  # noqa: S105 - the name of a Secret
RECORD_KEY = "revoked.json"
CRL_KEY = "ca-crl.pem"
_POLL_SECONDS = 2.0


async def revoke(secret: ReplaceableSecret, revocations: Iterable[Revocation]) -> int:
    """Add to the record what is not in it; return how many that were."""
    wanted = {it.serial: it for it in revocations}
    while True:
        stored = await secret.read()
        values = dict(stored.values) if stored else {}
        there = read_revocations(values.get(RECORD_KEY, b""))
        added = wanted.keys() - there.keys()
        if not added:
            return 0
        if len(there) + len(added) > MAX_REVOCATIONS:
            raise RefusedRequestError(
                f"more than {MAX_REVOCATIONS} certificates would be revoked",
                hint="renew the CA key instead: what is issued by the one before is void then",
            )
        values[RECORD_KEY] = write_revocations((wanted | there).values())
        try:
            await secret.write(values, stored.version if stored else None)
        except SecretExistsError:
            continue
        return len(added)


class RevocationKeeper:
    """Takes up what is revoked, and keeps a valid list of it signed by the CA that serves."""

    def __init__(
        self,
        secret: ReplaceableSecret,
        authority: Callable[[], Authority | None],
        publish: Callable[[str], Awaitable[None]],
        clock: Callable[[], datetime],
        log: EventLog,
        *,
        poll_seconds: float = _POLL_SECONDS,
    ) -> None:
        self._secret = secret
        self._authority = authority
        self._publish = publish
        """Is given each list in PEM."""

        self._clock = clock
        self._log = log
        self._poll_seconds = poll_seconds
        self._revoked: frozenset[int] = frozenset()
        self._published = ""

    def __contains__(self, serial: object) -> bool:
        return serial in self._revoked

    async def run(self) -> None:
        """Look every few seconds until cancelled."""
        told = ""
        while True:
            try:
                await self._look()
                told = ""
            except SecretExistsError:
                pass  # another was first: what it wrote is looked at next
            except (BridgeError, OSError) as error:
                if str(error) != told:
                    told = str(error)
                    hint = error.hint if isinstance(error, BridgeError) else ""
                    self._log.warning("crl.delayed", reason=told, hint=hint)
            await asyncio.sleep(self._poll_seconds)

    async def _look(self) -> None:
        stored = await self._secret.read()
        values = dict(stored.values) if stored else {}
        entries = read_revocations(values.get(RECORD_KEY, b""))
        if entries.keys() != self._revoked:
            self._revoked = frozenset(entries)
            self._log.info("crl.revocations_loaded", certificates=len(entries))
        authority = self._authority()
        if authority is None:
            return
        crl, now = _read_crl(values.get(CRL_KEY, b"")), self._clock()
        why = why_anew(crl, authority.issuer, entries.values(), now)
        if why:
            number = max(number_of(crl) + 1, int(now.timestamp()))
            crl = await make_crl(authority.issuer, entries.values(), number=number, now=now)
            values = {
                RECORD_KEY: write_revocations(entries.values()),
                CRL_KEY: crl.public_bytes(serialization.Encoding.PEM),
            }
            await self._secret.write(values, stored.version if stored else None)
            self._log.info("crl.issued", because=why, number=number, certificates=len(entries))
        pem = values[CRL_KEY].decode("ascii")
        if pem != self._published:
            await self._publish(pem)
            self._published = pem


def _read_crl(pem: bytes) -> x509.CertificateRevocationList | None:
    try:
        return x509.load_pem_x509_crl(pem)
    except MALFORMED:
        return None
