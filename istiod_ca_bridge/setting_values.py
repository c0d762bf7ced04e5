"""How the values of the settings are written: text -> value, ValueError saying what is wanted."""

import re
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from istiod_ca_bridge.identity import check_trust_domain
from istiod_ca_bridge.renewal import RenewalPolicy
from istiod_ca_bridge.signer import KeyAlgorithm

_DURATION = re.compile(r"(?=.)(?:([0-9]{1,7})h)?(?:([0-9]{1,9})m)?(?:([0-9]{1,9})s)?")
_MIN_TTL = timedelta(minutes=1)
_MAX_TTL = timedelta(days=3650)
_MAX_CACHE = timedelta(minutes=1)
_DNS_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9](?:[-a-z0-9.]*[a-z0-9])?")
_NAMESPACE = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")
_MAX_PORT = 65535
_MAX_ID_BYTES = 128


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def algorithm(text: str) -> KeyAlgorithm:
    """Return a key's algorithm, underscores and capitals allowed."""
    return KeyAlgorithm(text.lower().replace("_", "-"))


def kek_id(text: str) -> str:
    """Return a KEK's id."""
    if not text:
        raise ValueError("it is not set")
    if len(text) > _MAX_ID_BYTES or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError(f"it must be 1 to {_MAX_ID_BYTES} visible ASCII characters")
    return text


def socket_path(text: str) -> Path:
    """Return the path of a Unix socket."""
    path = Path(text.removeprefix("unix://").removeprefix("unix:"))
    if not path.is_absolute():
        raise ValueError("it must be the absolute path of the HSM plugin's socket")
    return path


def namespace(text: str) -> str:
    """Return a namespace's name."""
    if not _NAMESPACE.fullmatch(text):
        raise ValueError("it is not the name of a namespace")
    return text


def address(text: str) -> Address:
    """Return a host and a port."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > _MAX_PORT:
        raise ValueError("it must be host:port")
    return Address(host.strip("[]") or "::", int(port))


def dns_names(text: str) -> tuple[str, ...]:
    """Return DNS names."""
    names = listed(text)
    if any(not _DNS_NAME.fullmatch(name) for name in names):
        raise ValueError("it must be DNS names, separated by commas")
    return names


def listed(text: str) -> tuple[str, ...]:
    """Return what commas separate."""
    return tuple(entry.strip() for entry in text.split(",") if entry.strip())


def count(text: str) -> int:
    """Return a number from 1 to 100,000."""
    number = int(text)
    if not 1 <= number <= 100_000:  # noqa: PLR2004 - said in the message
        raise ValueError(text)
    return number


def file_size(text: str) -> int:
    """Return a number of bytes from 4096 on."""
    number = int(text)
    if number < 4096:  # noqa: PLR2004 - said in the message
        raise ValueError(text)
    return number


def fraction(text: str) -> float:
    """Return a percentage up to 50 as a fraction."""
    found = float(text.removesuffix("%")) / 100
    if not (0 <= found <= 0.5 and text.endswith("%")):  # noqa: PLR2004 - said in the message
        raise ValueError(text)
    return found


def accounts(text: str) -> frozenset[tuple[str, str]]:
    """Return pairs of namespace and ServiceAccount."""
    pairs = [entry.split("/") for entry in listed(text)]
    if any(len(pair) != 2 or not all(map(_DNS_NAME.fullmatch, pair)) for pair in pairs):  # noqa: PLR2004 - two parts
        raise ValueError("it must be <namespace>/<ServiceAccount>, separated by commas")
    return frozenset((namespace, account) for namespace, account in pairs)


def trust_domains(text: str) -> frozenset[str]:
    """Return names of trust domains."""
    return frozenset(check_trust_domain(name) for name in listed(text))


def duration(text: str) -> timedelta:
    """Return a Go duration in hours, minutes and seconds."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError("it must be a duration such as 24h or 1h30m")
    hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return timedelta(hours=hours, minutes=minutes, seconds=seconds)


def lease_duration(text: str) -> timedelta:
    """Return the time that a leader may be silent."""
    found = duration(text)
    if not timedelta(seconds=3) <= found <= timedelta(minutes=5):
        raise ValueError(text)
    return found


def renewal_policy(text: str) -> RenewalPolicy:
    """Return when to ask for a new CA certificate."""
    if text.endswith("%"):
        percent = int(text.removesuffix("%"))
        if not 1 <= percent <= 90:  # noqa: PLR2004 - said in the message
            raise ValueError("it must be 1% to 90% of the CA certificate's life, or a duration")
        return RenewalPolicy(fraction=percent / 100)
    before = duration(text)
    if not before:
        raise ValueError("it must not be zero")
    return RenewalPolicy(before)


def cache_time(text: str) -> timedelta:
    """Return how long an accepted token is remembered."""
    found = timedelta(0) if text == "0" else duration(text)
    if found > _MAX_CACHE:
        raise ValueError(text)
    return found


def lifetime(text: str) -> timedelta:
    """Return a certificate's lifetime."""
    found = duration(text)
    if not _MIN_TTL <= found <= _MAX_TTL:
        raise ValueError("it must be 1m to 87600h")
    return found
