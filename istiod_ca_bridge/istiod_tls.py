"""istiod's own serving certificate, in the Secret that its chart mounts.

An istiod that is no CA has nobody else to make one. The key is made here, for istiod must read
it; it is in the Secret and nowhere else.
"""

import asyncio
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Protocol

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization

from istiod_ca_bridge.authority import Authority
from istiod_ca_bridge.der import MALFORMED
from istiod_ca_bridge.errors import BridgeError, SecretExistsError
from istiod_ca_bridge.ledger import Ledger, of_server
from istiod_ca_bridge.log import EventLog
from istiod_ca_bridge.server_certificate import make_server_key_pair
from istiod_ca_bridge.store import StoredSecret

ISTIOD_TLS_SECRET = "istiod-tls"  # noqa: S105 - the name of a Secret
CERTIFICATE_KEY = "tls.crt"
PRIVATE_KEY_KEY = "tls.key"
ROOTS_KEY = "ca.crt"

_POLL_SECONDS = 2.0
_DEFAULT_REVISION = "default"
_REVISION = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,48}[a-z0-9])?")


class ReplaceableSecret(Protocol):
    """One Secret that this program may write over."""

    async def read(self) -> StoredSecret | None:
        """Return the Secret; None when there is none. StoreUnavailableError when unknown."""
        ...

    async def write(self, values: Mapping[str, bytes], version: str | None) -> None:
        """Create the Secret (None), or replace these values in just that state of it; others stay.

        SecretExistsError when another writer was first, else StoreUnavailableError.
        """
        ...


def istiod_names(namespace: str, revisions: tuple[str, ...]) -> tuple[str, ...]:
    """Return the Services of istiod; ValueError when a revision cannot be one's name."""
    wrong = [revision for revision in revisions if not _REVISION.fullmatch(revision)]
    if wrong:
        raise ValueError(f"{wrong[0]!r} is not a revision")
    named = dict.fromkeys(it for it in revisions if it != _DEFAULT_REVISION)
    return (
        f"istiod.{namespace}.svc",
        *(f"istiod-{revision}.{namespace}.svc" for revision in named),
    )


class IstiodTls:
    """Keeps the Secret such that istiod can serve with it."""

    def __init__(
        self,
        secret: ReplaceableSecret,
        names: tuple[str, ...],
        authority: Callable[[], Authority | None],
        clock: Callable[[], datetime],
        log: EventLog,
        *,
        ledger: Ledger | None = None,
        poll_seconds: float = _POLL_SECONDS,
    ) -> None:
        self._secret = secret
        self._names = names
        self._authority = authority
        self._clock = clock
        self._log = log
        self._ledger = ledger
        self._poll_seconds = poll_seconds

    async def run(self) -> None:
        """Look every few seconds until cancelled."""
        told = ""
        while True:
            try:
                await self._look()
                told = ""
            except SecretExistsError:
                pass  # another replica was first: what it wrote is looked at next
            except BridgeError as error:
                if str(error) != told:
                    told = str(error)
                    self._log.warning("istiod_tls.delayed", reason=told, hint=error.hint)
            await asyncio.sleep(self._poll_seconds)

    async def _look(self) -> None:
        authority = self._authority()
        if authority is None:
            return
        stored = await self._secret.read()
        now = self._clock()
        why = why_anew(stored.values if stored else None, authority, self._names, now)
        if not why:
            return
        pair = await make_server_key_pair(authority, self._names, now)
        if self._ledger is not None:
            await self._ledger.record(of_server(pair.leaf, authority, self._names))
        await self._secret.write(
            {
                CERTIFICATE_KEY: pair.chain_pem.encode("ascii"),
                PRIVATE_KEY_KEY: pair.key_pem,
                ROOTS_KEY: authority.roots_pem.encode("ascii"),
            },
            stored.version if stored else None,
        )
        self._log.info(
            "istiod_tls.issued",
            because=why,
            names=",".join(self._names),
            not_after=pair.not_after,
        )


def why_anew(
    values: Mapping[str, bytes] | None,
    authority: Authority,
    names: tuple[str, ...],
    now: datetime,
) -> str:
    """Return why istiod needs another certificate; empty when the one it has will do."""
    if values is None:
        return "there is none"
    try:
        chain = x509.load_pem_x509_certificates(values.get(CERTIFICATE_KEY, b""))
        chain[0].verify_directly_issued_by(authority.chain.ca)
        names_held = chain[0].extensions.get_extension_for_class(x509.SubjectAlternativeName)
        key = serialization.load_pem_private_key(values.get(PRIVATE_KEY_KEY, b""), None)
    except InvalidSignature:
        return "it is not issued by the CA that serves"
    except (x509.ExtensionNotFound, *MALFORMED):
        return "it cannot be used"
    starts, ends = chain[0].not_valid_before_utc, chain[0].not_valid_after_utc
    is_old = now >= starts + (ends - starts) / 2
    faults = (
        ("its key is not the certificate's", chain[0].public_key() != key.public_key()),
        ("it has other names", tuple(names_held.value.get_values_for_type(x509.DNSName)) != names),
        (
            "its intermediates are not those that serve",
            chain[1:] != list(authority.chain.intermediates),
        ),
        (
            "its roots are not those that serve",
            values.get(ROOTS_KEY) != authority.roots_pem.encode("ascii"),
        ),
        ("it is not valid now", not starts <= now < ends),
        # What ends with the CA would not live any longer anew.
        ("half of its life is over", is_old and ends < authority.not_after),
    )
    return next((fault for fault, is_so in faults if is_so), "")
