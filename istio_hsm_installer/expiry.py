"""The expiry table: every certificate of the installation, the first to expire at the top."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509

from istio_hsm_installer.certificates import read
from istio_hsm_installer.installation import TLS_SECRET, Installation
from istio_hsm_installer.secret_dir import CHAIN_SECRET


@dataclass(frozen=True, slots=True)
class Row:
    """One certificate."""

    subject: str
    source: str
    not_after: str
    days: int
    """Left; below 0 when it is over."""


def table(installation: Installation, now: datetime) -> Sequence[Row]:
    """Return the certificates of the chain, of istiod, of the webhooks and of Vault's CA."""
    vault = (installation.config_map("vault-tls-cert") or {}).get("cert", "")
    found = [
        (f"Secret {CHAIN_SECRET}", installation.chain()),
        (f"Secret {TLS_SECRET}", read(installation.secret(TLS_SECRET).get("tls.crt", b""))),
        *(("webhook", read(pem)) for pem in dict.fromkeys(installation.webhook_bundles())),
        ("ConfigMap vault-tls-cert", read(vault.encode())),
    ]
    return sorted(_rows(found, now), key=lambda row: row.not_after)


def _rows(found: Iterable[tuple[str, Sequence[x509.Certificate]]], now: datetime) -> Iterable[Row]:
    for source, certificates in found:
        for certificate in certificates:
            until = certificate.not_valid_after_utc
            yield Row(
                certificate.subject.rfc4514_string() or "(names only)",
                source,
                f"{until:%Y-%m-%d %H:%M}Z",
                (until - now).days,
            )
