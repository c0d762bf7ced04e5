"""What two of the modes need to know, and how its parts are spelt."""

import re
from dataclasses import dataclass
from pathlib import Path

from istiod_ca_bridge.signing_request import user_name

_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9](?:[-a-z0-9.]*[a-z0-9])?")
_KUBERNETES = "kubernetes.io"


@dataclass(frozen=True, slots=True)
class PlugInSettings:
    """The folder of BRIDGE_MODE=sealed."""

    directory: Path
    allow_disk: bool
    wipe_on_exit: bool


@dataclass(frozen=True, slots=True)
class CsrSettings:
    """Whose requests BRIDGE_MODE=csr-signer signs."""

    signers: tuple[str, ...]
    """Whole names: <domain>/<name>."""

    requestors: frozenset[str]
    """User names."""

    dns_names: frozenset[str]


def absolute_path(text: str) -> Path:
    """Return the path; ValueError when it depends on where the process runs."""
    if not text.startswith("/"):
        raise ValueError("it must be the absolute path of a directory in memory")
    return Path(text)


def signer_domain(text: str) -> str:
    """Return the domain; ValueError when it cannot be one of ours."""
    if "." not in text or not _NAME.fullmatch(text):
        raise ValueError("it must be a domain, as istiod's own CERT_SIGNER_DOMAIN is")
    if text == _KUBERNETES or text.endswith(f".{_KUBERNETES}"):
        raise ValueError(f"{_KUBERNETES} belongs to Kubernetes")
    return text


def signer_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names; ValueError when one cannot follow the domain, or there is none."""
    if not names or any(not _NAME.fullmatch(name) for name in names):
        raise ValueError("it must be the names behind the signers' domain, separated by commas")
    return names


def user_names(accounts: tuple[str, ...]) -> frozenset[str]:
    """Return the user names of <namespace>/<service account> each; ValueError without any."""
    if not accounts:
        raise ValueError("it names no service account")
    return frozenset(user_name(account) for account in accounts)
