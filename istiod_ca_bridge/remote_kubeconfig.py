"""A remote secret's kubeconfig -> the API server to ask and the token to ask with.

Whoever may write such a Secret must not be able to have files read or programs run here, so only
what lies in the kubeconfig itself is taken: a server, its CA and a token, as `istioctl
create-remote-secret` writes them.
"""

from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import yaml

from istiod_ca_bridge.errors import CorruptSecretError

MAX_BYTES = 256 << 10
_USER_KEYS = {"token"}
_CLUSTER_KEYS = {"server", "certificate-authority-data", "tls-server-name"}


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
        document = yaml.safe_load(kubeconfig)
    except (yaml.YAMLError, ValueError, RecursionError):
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
    server = _text(cluster, "server")
    if urlsplit(server).scheme != "https" or not urlsplit(server).hostname:
        raise CorruptSecretError("the kubeconfig's server is no https address")
    try:
        ca_pem = b64decode(_text(cluster, "certificate-authority-data"), validate=True).decode()
    except ValueError:
        raise CorruptSecretError(
            "the kubeconfig's certificate-authority-data is malformed"
        ) from None
    return RemoteApi(server, ca_pem, _text(user, "token"), _text(cluster, "tls-server-name", ""))


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
