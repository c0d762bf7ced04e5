"""The record of revoked certificates and the lists made of it, kept in one Secret for all replicas.

Whoever writes does so on top of just the state that it read, so neither a revocation nor a number
of the list is ever lost or given twice.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Protocol

from cryptography import x509

from istiod_ca_bridge.authority import Authority
from istiod_ca_bridge.chain import name_of
from istiod_ca_bridge.conditions import Conditions
from istiod_ca_bridge.crl import (
    MAX_REVOCATIONS,
    Revocation,
    make_crl,
    number_of,
    read_revocations,
    why_anew,
    write_revocations,
)
from istiod_ca_bridge.crl_bundle import (
    MAX_FURTHER_BYTES,
    Bundle,
    Crl,
    bundle,
    cas_above,
    first_end,
    is_list_of,
    lists_in,
    path_of,
    pem_of_lists,
    without_list,
)
from istiod_ca_bridge.der import MALFORMED
from istiod_ca_bridge.errors import (
    BridgeError,
    CorruptSecretError,
    RefusedRequestError,
    SecretExistsError,
)
from istiod_ca_bridge.issue import Issuer
from istiod_ca_bridge.istiod_tls import ReplaceableSecret
from istiod_ca_bridge.log import EventLog
from istiod_ca_bridge.signer import key_der

REVOCATIONS_SECRET = "istio-ca-revocations"  # noqa: S105 - the name of a Secret
RECORD_KEY = "revoked.json"
CRL_KEY = "ca-crl.pem"
"""The lists that our keys sign."""

ISSUERS_KEY = "issuer-crls.pem"
"""The lists of the CAs above ours, the root included: the operator writes them."""

_POLL_SECONDS = 2.0
_WARN_BEFORE = timedelta(days=30)

Chain = tuple[x509.Certificate, ...]


class OtherKeys(Protocol):
    """The keys that sign lists besides the one that signs leaves: those of a rotation."""

    @property
    def listed(self) -> Sequence[Chain]:
        """Their chains, with all roots."""
        ...

    @property
    def shown(self) -> Sequence[Chain]:
        """Those of the chains that workloads may show."""
        ...

    async def issuers(self) -> tuple[Issuer, ...]:
        """Return those whose key can be used; KeyServiceUnavailableError for not now."""
        ...


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
    """Takes up what is revoked, and keeps valid lists of it signed by each key in use."""

    def __init__(
        self,
        secret: ReplaceableSecret,
        authority: Callable[[], Authority | None],
        publish: Callable[[str], Awaitable[None]],
        clock: Callable[[], datetime],
        log: EventLog,
        *,
        others: OtherKeys | None = None,
        conditions: Conditions | None = None,
        further_end: Callable[[datetime | None], None] = lambda _: None,
        poll_seconds: float = _POLL_SECONDS,
    ) -> None:
        self._secret = secret
        self._authority = authority
        self._publish = publish
        """Is given the lists in PEM, when none is lacking."""

        self._clock = clock
        self._log = log
        self._others = others
        self._conditions = conditions or Conditions(clock)
        self._further_end = further_end
        """Is told when the first of the lists ends that the operator wrote; None: there is none."""

        self._poll_seconds = poll_seconds
        self._revoked: frozenset[int] = frozenset()
        self._published = Bundle()
        self._told: dict[str, str] = {}

    def __contains__(self, serial: object) -> bool:
        return serial in self._revoked

    def unlisted(self, chain_pem: bytes) -> str:
        """Return the CAs of a chain that have no list among the published ones; empty for none."""
        try:
            cas = cas_above(x509.load_pem_x509_certificates(chain_pem))
        except MALFORMED:
            return "a chain that cannot be read"
        return _names(without_list(cas, self._published.lists, self._clock()))

    async def run(self) -> None:
        """Look every few seconds until cancelled."""
        while True:
            try:
                await self._look()
                self._told.pop("crl.delayed", None)
            except SecretExistsError:
                pass  # another was first: what it wrote is looked at next
            except (BridgeError, OSError) as error:
                hint = error.hint if isinstance(error, BridgeError) else ""
                self._tell("crl.delayed", str(error), hint)
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
        now = self._clock()
        ours = await self._signed(authority, _lists(values.get(CRL_KEY, b"")), entries.values())
        text = pem_of_lists(ours).encode()
        if values.get(CRL_KEY) != text:
            record = {RECORD_KEY: write_revocations(entries.values()), CRL_KEY: text}
            await self._secret.write(record, stored.version if stored else None)
        await self._offer(authority, ours, self._further(values.get(ISSUERS_KEY, b"")), now)

    async def _signed(
        self, authority: Authority, stored: Sequence[Crl], entries: Iterable[Revocation]
    ) -> list[Crl]:
        """Return the lists of our keys: those that will do, and others made anew."""
        now, revoked = self._clock(), tuple(entries)
        rotated = await self._others.issuers() if self._others else ()
        issuers = {by.key: by for by in (*rotated, authority.issuer)}
        shown = self._others.shown if self._others else ()
        number = max(map(number_of, stored), default=0)
        lists = []
        # In an order of their own, so that all replicas write the same, whichever key signs.
        for _, by in sorted(issuers.items()):
            before = [it for it in stored if it.is_signature_valid(by.signer.public_key)]
            kept = next((it for it in before if not why_anew(it, by, revoked, now)), None)
            if kept is None:
                number = max(number + 1, int(now.timestamp()))
                kept = await make_crl(by, revoked, number=number, now=now)
                why = why_anew(before[0] if before else None, by, revoked, now)
                self._log.info("crl.issued", because=why, number=number, certificates=len(revoked))
            lists.append(kept)
        # A key that is gone cannot sign: what it signed last holds for what it issued.
        orphans = [ca for ca, *_ in shown if key_der(ca.public_key()) not in issuers]
        return lists + [it for it in stored if any(is_list_of(it, ca, now) for ca in orphans)]

    async def _offer(
        self, authority: Authority, ours: Sequence[Crl], further: Sequence[Crl], now: datetime
    ) -> None:
        """Publish the lists, unless proxies would refuse everybody for want of one."""
        required, known = list(path_of(authority.chain)), list[x509.Certificate]()
        if self._others is not None:
            required += [ca for chain in self._others.shown for ca in cas_above(chain)]
            known += [ca for chain in self._others.listed for ca in cas_above(chain)]
        self._further_end(first_end(further, [*required, *known]))
        made = bundle(ours, further, required, [*required, *known], now)
        if made.lacking:
            self._tell(
                "crl.not_published",
                f"there is no valid list of {_names(made.lacking)}, and without it proxies would"
                " refuse every certificate",
                f"write the lists of the CAs above to {ISSUERS_KEY} in {REVOCATIONS_SECRET}",
                event="CrlNotPublished",
            )
            return
        self._told.pop("crl.not_published", None)
        self._warn_of_end(made.lists[len(ours) :], now)
        if made.pem != self._published.pem:
            await self._publish(made.pem)
        self._published = made

    def _warn_of_end(self, further: Iterable[Crl], now: datetime) -> None:
        """Tell, a month before, that everybody will be refused once a list ends."""
        end = min((it.next_update_utc for it in further if it.next_update_utc), default=None)
        if end is None or now < end - _WARN_BEFORE:
            self._told.pop("crl.issuer_list_ends", None)
            return
        self._tell(
            "crl.issuer_list_ends",
            f"a list in {ISSUERS_KEY} ends at {end:%FT%TZ}; proxies refuse every certificate then",
            f"write a newer one to {REVOCATIONS_SECRET}",
            event="IssuerCrlEnds",
        )

    def _further(self, text: bytes) -> tuple[Crl, ...]:
        try:
            lists = lists_in(text, MAX_FURTHER_BYTES)
        except CorruptSecretError as error:
            self._tell("crl.issuer_lists_unusable", f"{ISSUERS_KEY}: {error}", error.hint)
            return ()
        self._told.pop("crl.issuer_lists_unusable", None)
        return lists

    def _tell(self, topic: str, reason: str, hint: str, *, event: str = "") -> None:
        """Tell each trouble once, until it changes or passes."""
        if self._told.get(topic) == reason:
            return
        self._told[topic] = reason
        self._log.warning(topic, reason=reason, hint=hint)
        if event:
            self._conditions.happened(event, f"{reason} ({hint})", is_warning=True)


def _names(certificates: Iterable[x509.Certificate]) -> str:
    return ", ".join(map(name_of, certificates))


def _lists(text: bytes) -> tuple[Crl, ...]:
    try:
        return lists_in(text)
    except CorruptSecretError:
        return ()
