"""When the CA certificate's successor is due, and what asks for it: a fresh CSR of the same key.

The CSR goes to a Secret of its own, so that the guide's own stay as they are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509

from istiod_ca_bridge.records import CsrRecord

RENEWS_KEY = "renews-serial"
_LATE = 3
"""Of what is left when renewal is due, one third: now it is urgent."""


@dataclass(frozen=True, slots=True)
class RenewalPolicy:
    """How long before its end a CA certificate is to be renewed."""

    before: timedelta | None = None
    """None: `fraction` of its life."""

    fraction: float = 1 / 3

    def due_at(self, certificate: x509.Certificate) -> datetime:
        """Return when the CSR is to be there."""
        starts, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        return ends - (self.before or (ends - starts) * self.fraction)

    def is_late(self, certificate: x509.Certificate, now: datetime) -> bool:
        """Tell whether most of the time for the renewal is over."""
        ends = certificate.not_valid_after_utc
        return now >= ends - (ends - self.due_at(certificate)) / _LATE


def renewal_values(record: CsrRecord, certificate: x509.Certificate) -> dict[str, bytes]:
    """Return the values of the renewal's Secret: a CSR Secret that names what it renews."""
    return record.values() | {RENEWS_KEY: _serial(certificate)}


def renews(values: Mapping[str, bytes], certificate: x509.Certificate) -> bool:
    """Tell whether the Secret asks for the successor of this certificate."""
    return values.get(RENEWS_KEY, b"").strip() == _serial(certificate)


def _serial(certificate: x509.Certificate) -> bytes:
    return f"{certificate.serial_number:x}".encode()
