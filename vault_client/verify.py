"""Whether the parts of a secret can work together; asked before they are published. Pure.

What is judged: PEM shape, key matches certificate, validity now, PIN shape. Whether the HSM
accepts the PIN is for the plugin to try (vault_client.trial), which remembers what was refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from vault_client.delivery import FileNames, SecretSet
from vault_client.diagnosis import CLOCK_TOLERANCE, MEND_CLOCK, Reason, side_of
from vault_client.errors import InvalidSetError
from vault_client.secret import Secret

MALFORMED = (
    ValueError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""All that `cryptography` raises about bytes that are no certificate or key."""

_PIN_LENGTH = range(4, 256)
_CLIENT_CERT, _CLIENT_KEY, _SERVER_CERT, _PIN = "clientcert", "clientkey", "servercert", "PIN"


@dataclass(frozen=True, slots=True)
class Verified:
    """A set that may be published, and when each certificate in it ends, by file name."""

    delivered: SecretSet
    expiries: Mapping[str, datetime]


def verify(
    values: Mapping[str, Secret | None],
    version: int | None,
    names: FileNames,
    now: datetime,
    *,
    clock_ahead: timedelta = timedelta(0),
) -> Verified:
    """Return the set that the values of a KV secret make.

    InvalidSetError names every fault, and no value. `clock_ahead`: of Vault's clock before ours.
    """
    by_key = names.by_key()
    faults = [_absence(key, values) for key in by_key if values.get(key) is None]
    present = {key: value for key in by_key if (value := values.get(key)) is not None}
    expiries: dict[str, datetime] = {}
    certificates: dict[str, x509.Certificate] = {}
    untimely: list[str] = []
    """Faults that Vault's clock does not see."""
    for key in (_CLIENT_CERT, _SERVER_CERT):
        if key not in present:
            continue
        try:
            chain = x509.load_pem_x509_certificates(present[key].reveal())
            _ = [certificate.public_key() for certificate in chain]
        except MALFORMED:
            faults.append(f"{key} is no PEM certificate")
            continue
        certificates[key] = chain[0]
        expiries[by_key[key]] = min(certificate.not_valid_after_utc for certificate in chain)
        wrong = _validity(key, chain[0], now)
        faults += wrong
        if abs(clock_ahead) > CLOCK_TOLERANCE and not _validity(key, chain[0], now + clock_ahead):
            untimely += wrong
    if _CLIENT_KEY in present:
        faults += _key_faults(present[_CLIENT_KEY], certificates.get(_CLIENT_CERT))
    if _PIN in present:
        present[_PIN] = _without_newline(present[_PIN])
        faults += _pin_faults(present[_PIN])
    if faults and faults == untimely:
        raise InvalidSetError(
            f"the secret is not fit to publish by our clock: {'; '.join(faults)}; Vault's clock "
            f"is {side_of(clock_ahead)}, and by that one it is",
            hint=MEND_CLOCK,
            reason=Reason.CLOCK.value,
        )
    if faults:
        raise InvalidSetError(
            f"the secret is not fit to publish: {'; '.join(faults)}",
            hint="write a whole new version with bao kv put; the set in place stays until then",
        )
    return Verified(SecretSet({by_key[k]: v for k, v in present.items()}, version), expiries)


def _absence(key: str, values: Mapping[str, Secret | None]) -> str:
    if key in values:
        return f"{key} is not a string"
    similar = [name for name in values if name.lower() == key.lower()]
    found = f" (there is {similar[0]}: keys are case-sensitive)" if similar else ""
    return f"{key} is missing{found}"


def _validity(key: str, certificate: x509.Certificate, now: datetime) -> list[str]:
    if now < certificate.not_valid_before_utc:
        begins = certificate.not_valid_before_utc.isoformat()
        return [f"{key} is not valid before {begins}, and it is {now.isoformat()} here"]
    if now > certificate.not_valid_after_utc:
        ended = certificate.not_valid_after_utc.isoformat()
        return [f"{key} expired at {ended}, and it is {now.isoformat()} here"]
    return []


def _key_faults(pem: Secret, certificate: x509.Certificate | None) -> list[str]:
    try:
        public = load_pem_private_key(pem.reveal(), password=None).public_key()
    except TypeError:
        return [f"{_CLIENT_KEY} is encrypted; the HSM client cannot open it"]
    except MALFORMED:
        return [f"{_CLIENT_KEY} is no PEM private key"]
    if certificate is None:
        return []
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if public.public_bytes(*form) != certificate.public_key().public_bytes(*form):
        return [f"{_CLIENT_KEY} does not belong to {_CLIENT_CERT}"]
    return []


def _without_newline(pin: Secret) -> Secret:
    """Return the PIN without the line end that `bao kv put PIN=@file` brings along."""
    value = pin.reveal()
    stripped = value.removesuffix(b"\n").removesuffix(b"\r")
    if stripped == value:
        return pin
    pin.wipe()
    return Secret(stripped)


def _pin_faults(pin: Secret) -> list[str]:
    value = pin.reveal()
    faults: list[str] = []
    if len(value) not in _PIN_LENGTH:
        faults.append(f"{_PIN} is not {_PIN_LENGTH.start} to {_PIN_LENGTH.stop - 1} bytes long")
    if value != value.strip() or not value.isascii() or not value.decode("latin-1").isprintable():
        faults.append(f"{_PIN} holds white space around it, or characters that are not printable")
    return faults
