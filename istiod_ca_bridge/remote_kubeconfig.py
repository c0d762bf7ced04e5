"""A remote secret's kubeconfig -> the API server to ask and the token to ask with.

Whoever may write such a Secret must not be able to have files read or programs run here, so only
what lies in the kubeconfig itself is taken: a server, its CA and a token, as `istioctl
create-remote-secret` writes them.
"""

import re
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv6Address

import yaml
from cryptography import x509

from istiod_ca_bridge.chain import pem_of
from istiod_ca_bridge.der import MALFORMED
from istiod_ca_bridge.errors import CorruptSecretError

MAX_BYTES = 64 << 10
"""Many certificates and a token; and parsing it holds nobody up for long."""

_MAX_HOST = 253
_MAX_PORT = 65535
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,62})"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*", re.ASCII)
_SERVER = re.compile(
    r"https://(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>/[!$&-;=@-Z_a-z~]*)?",
    re.ASCII,
)
"""No user, query or fragment; a path may stand for one of several clusters behind a proxy."""

_TOKEN = re.compile(r"[!-~]{1,65536}", re.ASCII)
_NO_YAML = (
    *(yaml.YAMLError, ValueError, RecursionError),
    *(KeyError, IndexError, AttributeError, OverflowError),  # explicit tags on odd scalars
)
_USER_KEYS = {"token"}
_CLUSTER_KEYS = {"server", "certificate-authority-data", "tls-server-name"}


class _Loader(yaml.SafeLoader):
    """Reads plain values; an alias is refused, since a few of them can stand for gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError
        return super().compose_node(parent, index)


@dataclass(frozen=True, slots=True)
class RemoteApi:
    """An API server of another cluster."""

    server: str
    ca_pem: str = field(repr=False)
    token: str = field(repr=False)
    tls_server_name: str = ""


def remote_api(kubeconfig: bytes) -> RemoteApi:
    """Return what the current context names; CorruptSecretError says what is not allowed."""
    if len(kubeconfig) > MAX_BYTES:
        raise CorruptSecretError(f"the kubeconfig has more than {MAX_BYTES} bytes")
    try:
        document: object = _Loader(kubeconfig).get_single_data()
    except _NO_YAML:
        raise CorruptSecretError("the kubeconfig is not YAML") from None
    context = _named(document, "contexts", "context", _text(document, "current-context"))
    user = _named(document, "users", "user", _text(context, "user"))
    cluster = _named(document, "clusters", "cluster", _text(context, "cluster"))
    for kind, entry, allowed in (("user", user, _USER_KEYS), ("cluster", cluster, _CLUSTER_KEYS)):
        if foreign := sorted(str(key) for key in entry if key not in allowed):
            raise CorruptSecretError(
                f"the kubeconfig's {kind} has {', '.join(foreign)[:200]}, which is not allowed",
                hint="make it by `istioctl create-remote-secret`: a server, its CA, a token",
            )
    return RemoteApi(
        _server(_text(cluster, "server")),
        _ca(_text(cluster, "certificate-authority-data")),
        _token(_text(user, "token")),
        _server_name(_text(cluster, "tls-server-name", "")),
    )


def _server(text: str) -> str:
    match = _SERVER.fullmatch(text)
    if match is None or not _is_host(match["host"]) or int(match["port"] or 1) > _MAX_PORT:
        raise CorruptSecretError("the kubeconfig's server is no https address")
    return text


def _ca(encoded: str) -> str:
    """Return the certificates in PEM, and nothing beside them."""
    try:
        found = x509.load_pem_x509_certificates(b64decode(encoded, validate=True))
    except MALFORMED:
        raise CorruptSecretError(
            "the kubeconfig's certificate-authority-data is malformed"
        ) from None
    return pem_of(*found)


def _token(text: str) -> str:
    if not _TOKEN.fullmatch(text):
        raise CorruptSecretError("the kubeconfig's token is malformed")
    return text


def _server_name(text: str) -> str:
    if text and not _is_host(text):
        raise CorruptSecretError("the kubeconfig's tls-server-name is malformed")
    return text


def _is_host(text: str) -> bool:
    if text.startswith("["):
        try:
            return bool(IPv6Address(text[1:-1]))
        except ValueError:
            return False
    return len(text) <= _MAX_HOST and _HOST.fullmatch(text) is not None


def _named(document: object, plural: str, singular: str, name: str) -> Mapping[object, object]:
    entries = document.get(plural) if isinstance(document, dict) else None
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and entry.get("name") == name:
            found = entry.get(singular)
            if isinstance(found, dict):
                return found
    raise CorruptSecretError(f"the kubeconfig has no {singular} that its current context names")


def _text(entry: object, key: str, default: str | None = None) -> str:
    value = entry.get(key, default) if isinstance(entry, dict) else default
    if not isinstance(value, str) or (not value and default is None):
        raise CorruptSecretError(f"the kubeconfig lacks {key}")
    return value
