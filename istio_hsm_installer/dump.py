"""What a support bundle holds: what is on the list, and nothing else. Pure.

Of a Secret: its name, its keys, their sizes, and a keyed digest that tells whether two values
are the same. The key of the digests is made for one bundle and kept nowhere, so that a short
value cannot be guessed from its digest.
"""

import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import timedelta

from istio_hsm_installer.objects import Document, entries, section

CONTAINERS = ("vault-client", "vaultclient", "hsm-plugin", "istiod-ca-bridge", "discovery")
CONFIG_MAPS = ("istio-ca-root-cert", "istio-hsm-ca-status", "istio-hsm-settings", "vault-tls-cert")
_ENVIRONMENT = frozenset(
    {
        *("KEY_MANAGEMENT_ENDPOINT", "KEY_MANAGEMENT_KEY_ID", "P11_TOKEN", "P11_LIB"),
        *("P11_PIN_FILE", "SOCKET", "ChrystokiConfigurationPath", "OUTPUT_DIR", "VAULT_ADDR"),
        *("VAULT_AUTH_PATH", "VAULT_ROLE", "VAULT_AUTH_JWT_PATH", "VAULT_KV_PATH", "VAULT_CACERT"),
        *("VAULT_AUTH_CERT_CM", "VAULT_NAMESPACE", "TRUST_DOMAIN", "CLUSTER_ID", "CA_LISTEN"),
        *("BRIDGE_MODE", "CA_KEY_MODE", "CA_KEY_ALGORITHM", "ENABLE_CA_SERVER", "REVISION"),
        *("EXTERNAL_CA", "PILOT_CERT_PROVIDER", "CERT_SIGNER_DOMAIN", "LOG_FORMAT"),
    }
)
_CONTAINER = ("name", "image", "restartPolicy", "resources", "securityContext")
_STATUS = ("phase", "reason", "message", "conditions", "startTime", "podIP")
_CONTAINER_STATUS = ("name", "ready", "restartCount", "imageID", "state", "lastState")
_DIGEST_BYTES = 8


def pod(found: Document) -> Document:
    """Return what is shown of a pod; variables that are not on the list keep their names only."""
    metadata, spec, status = (section(found, name) for name in ("metadata", "spec", "status"))
    return {
        "name": metadata.get("name"),
        "labels": dict(section(metadata, "labels")),
        "node": spec.get("nodeName"),
        "serviceAccount": spec.get("serviceAccountName"),
        "containers": [
            _container(entry)
            for name in ("initContainers", "containers")
            for entry in entries(spec, name)
        ],
        "status": _picked(status, _STATUS),
        "containerStatuses": [
            _picked(entry, _CONTAINER_STATUS)
            for name in ("initContainerStatuses", "containerStatuses")
            for entry in entries(status, name)
        ],
    }


def secret(found: Document, values: Mapping[str, bytes], digest_key: bytes) -> Document:
    """Return what is shown of a Secret."""
    return {
        "name": section(found, "metadata").get("name"),
        "type": found.get("type"),
        "keys": {
            key: {
                "bytes": len(value),
                "digest": hmac.digest(digest_key, value, "sha256")[:_DIGEST_BYTES].hex(),
            }
            for key, value in sorted(values.items())
        },
    }


def config_map(found: Document) -> Document:
    """Return what is shown of a ConfigMap that is on the list."""
    return {"name": section(found, "metadata").get("name"), "data": dict(section(found, "data"))}


def settings(options: object) -> object:
    """Return the configuration; none of it is secret, of files the paths are shown."""
    if is_dataclass(options):
        return {entry.name: settings(getattr(options, entry.name)) for entry in fields(options)}
    if isinstance(options, tuple):
        return [settings(entry) for entry in options]
    if isinstance(options, timedelta):
        return options.total_seconds()
    return options if options is None or isinstance(options, int) else str(options)


def as_file(document: object) -> bytes:
    """Return the document as a JSON file."""
    return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"


def wanted_logs(found: Document) -> Sequence[tuple[str, bool]]:
    """Return the containers whose logs are taken, and whether one before it ended."""
    names = [
        str(entry.get("name"))
        for part in ("initContainers", "containers")
        for entry in entries(found, "spec", part)
    ]
    restarted = {
        entry.get("name")
        for part in ("initContainerStatuses", "containerStatuses")
        for entry in entries(found, "status", part)
        if entry.get("restartCount")
    }
    return [(name, name in restarted) for name in names if name in CONTAINERS]


def _container(found: Document) -> Document:
    environment = {
        str(entry.get("name")): entry.get("value", "(from elsewhere)")
        if entry.get("name") in _ENVIRONMENT
        else "(hidden)"
        for entry in entries(found, "env")
    }
    return {**_picked(found, _CONTAINER), "env": environment}


def _picked(found: Document, names: Sequence[str]) -> dict[str, object]:
    return {name: found[name] for name in names if name in found}
