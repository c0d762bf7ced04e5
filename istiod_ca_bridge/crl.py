"""Revoked serials + CA -> certificate revocation list (RFC 5280, section 5), checked after signing.

A list with no entry is a list too: an empty file would leave the one before in force.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509

from istiod_ca_bridge import der
from istiod_ca_bridge.errors import CorruptSecretError, WrongProductError
from istiod_ca_bridge.issue import Issuer
from istiod_ca_bridge.policy import CLOCK_SKEW

LIFETIME = timedelta(days=7)
RENEW_AFTER = LIFETIME / 2
MAX_REVOCATIONS = 3000
"""As many as fit into the Secret with two lists of them, which there are during a rotation."""

_VERSION_2 = der.unsigned(1)
_SERIAL = re.compile(r"[0-9a-f]{1,40}")
_MOMENT = "%Y-%m-%dT%H:%M:%SZ"
_FIRST_YEAR = 1970
_MAX_NUMBER = (1 << 63) - 1
"""Of a list that another made: RFC 5280, section 5.2.3, lets a number have 20 octets at most."""


@dataclass(frozen=True, slots=True)
class Revocation:
    """A certificate that must not be trusted any more."""

    serial: int
    at: datetime
    reason: x509.ReasonFlags


def reason_of(text: str) -> x509.ReasonFlags:
    """Return the reason that RFC 5280 calls so; ValueError for one that no leaf has."""
    reason = x509.ReasonFlags(text)
    if reason in {x509.ReasonFlags.ca_compromise, x509.ReasonFlags.remove_from_crl}:
        raise ValueError(f"{text} is no reason to revoke a workload's certificate")
    return reason


def serial_of(text: str) -> int:
    """Return the serial in hexadecimal as logs and openssl write it; ValueError otherwise."""
    digits = text.lower().replace(":", "")
    if not _SERIAL.fullmatch(digits) or not int(digits, 16):
        raise ValueError("it is no serial in hexadecimal")
    return int(digits, 16)


def read_revocations(text: bytes) -> dict[int, Revocation]:
    """Return what a record says, by serial; CorruptSecretError when it cannot be read."""
    try:
        entries = [
            Revocation(
                serial_of(entry["serial"]),
                _moment(entry["at"]),
                reason_of(entry["reason"]),
            )
            for entry in json.loads(text or b"[]")
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CorruptSecretError(
            "the record of revoked certificates cannot be read", hint="restore it from a backup"
        ) from None
    return {entry.serial: entry for entry in entries}


def _moment(text: str) -> datetime:
    moment = datetime.strptime(text, _MOMENT).replace(tzinfo=UTC)
    if moment.year < _FIRST_YEAR:
        raise ValueError(text)
    return moment


def write_revocations(entries: Iterable[Revocation]) -> bytes:
    """Return the record of the entries, by serial."""
    record = [
        {"serial": f"{it.serial:x}", "at": f"{it.at:%FT%TZ}", "reason": it.reason.value}
        for it in sorted(entries, key=lambda it: it.serial)
    ]
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"


def why_anew(
    crl: x509.CertificateRevocationList | None,
    by: Issuer,
    entries: Iterable[Revocation],
    now: datetime,
) -> str:
    """Return why another list is needed; empty when this one will do."""
    try:
        return _why_anew(crl, by, entries, now)
    except der.MALFORMED:
        return "it cannot be read"


def _why_anew(
    crl: x509.CertificateRevocationList | None,
    by: Issuer,
    entries: Iterable[Revocation],
    now: datetime,
) -> str:
    if crl is None or crl.next_update_utc is None:
        return "there is none"
    if not crl.is_signature_valid(by.signer.public_key) or (crl.issuer.public_bytes() != by.name):
        return "it is not the serving CA's"
    if {it.serial_number for it in crl} != {it.serial for it in entries}:
        return "other certificates are revoked"
    if not crl.last_update_utc <= now < crl.last_update_utc + RENEW_AFTER:
        return "half of its life is over"
    return ""


def number_of(crl: x509.CertificateRevocationList | None) -> int:
    """Return a list's number; 0 without one that another can follow."""
    if crl is None:
        return 0
    try:
        number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except (x509.ExtensionNotFound, *der.MALFORMED):
        return 0
    return number if 0 <= number < _MAX_NUMBER else 0


async def make_crl(
    by: Issuer, entries: Iterable[Revocation], *, number: int, now: datetime
) -> x509.CertificateRevocationList:
    """Return the list, signed and checked; raises what signing raises."""
    revoked = sorted(entries, key=lambda it: it.serial)
    moment = now.replace(microsecond=0)
    parts = [
        _VERSION_2,
        by.algorithm_identifier,
        by.name,
        der.time(moment - CLOCK_SKEW),  # else who is a little late refuses everybody
        der.time(moment + LIFETIME),
    ]
    if revoked:
        parts.append(der.sequence(*(_entry(it) for it in revoked)))
    number_extension: x509.Extension[x509.ExtensionType] = x509.Extension(
        x509.CRLNumber.oid,
        False,  # noqa: FBT003 - not critical
        x509.CRLNumber(number),
    )
    extensions = der.sequence(by.authority_key_der, der.extension(number_extension))
    to_be_signed = der.sequence(*parts, der.context(0, extensions))
    signature = await by.signer.sign(to_be_signed)
    product = der.signed(to_be_signed, by.algorithm_identifier, signature)
    try:
        crl = x509.load_der_x509_crl(product)
        right = (
            not why_anew(crl, by, revoked, moment)
            and number_of(crl) == number
            and crl.next_update_utc == moment + LIFETIME
        )
    except der.MALFORMED:
        right = False
    if not right:
        raise WrongProductError("the signed revocation list is not what was asked for")
    return crl


def _entry(revocation: Revocation) -> bytes:
    parts = [der.unsigned(revocation.serial), der.time(revocation.at)]
    if revocation.reason is not x509.ReasonFlags.unspecified:
        reason: x509.Extension[x509.ExtensionType] = x509.Extension(
            x509.CRLReason.oid,
            False,  # noqa: FBT003 - not critical
            x509.CRLReason(revocation.reason),
        )
        parts.append(der.sequence(der.extension(reason)))
    return der.sequence(*parts)
