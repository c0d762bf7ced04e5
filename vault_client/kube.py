"""One value of one ConfigMap, read from the Kubernetes API.

Plain HTTPS with the pod's own service account: the Kubernetes client library would add some 20 MiB
and half a second to a process that must start within one second, for a single GET.
"""

import http.client
import json
import socket
import ssl
from http import HTTPStatus
from pathlib import Path

from vault_client.answers import mapping
from vault_client.errors import TlsError
from vault_client.settings import CaConfigMap
from vault_client.time_limit import Exchange, limited

_TIMEOUT_SECONDS = 5.0
_LIMIT_SECONDS = 10.0
"""Of the request in all, also where bytes drip."""

_LARGEST_BYTES = 4 << 20
"""More than the API server takes for a ConfigMap."""


def read_config_map_value(source: CaConfigMap, key: str) -> str:
    """Return the value under the key; TlsError says why it is not to be had."""
    namespace = source.namespace or _mounted(source.service_account / "namespace")
    name = f"ConfigMap {namespace}/{source.name}"
    status, body = _get(source, f"/api/v1/namespaces/{namespace}/configmaps/{source.name}", name)
    if status in {HTTPStatus.FORBIDDEN, HTTPStatus.UNAUTHORIZED}:
        raise TlsError(
            f"{name} holds Vault's CA and may not be read ({status})",
            hint=f"allow it: kubectl -n {namespace} create role vault-ca --verb=get "
            f"--resource=configmaps --resource-name={source.name}, and bind it",
        )
    if status == HTTPStatus.NOT_FOUND:
        raise TlsError(
            f"{name} should hold Vault's CA and does not exist",
            hint=f"kubectl -n {namespace} create configmap {source.name} --from-file={key}=ca.pem",
        )
    if status != HTTPStatus.OK:
        raise TlsError(
            f"the Kubernetes API answers {status} to reading {name}",
            hint="it is tried again; look at the API server if it lasts",
        )
    value = _value(body, key)
    if not isinstance(value, str):
        raise TlsError(
            f"{name} has no key {key}",
            hint=f"kubectl -n {namespace} create configmap {source.name} --from-file={key}=ca.pem",
        )
    return value


def _value(body: bytes, key: str) -> object:
    """Return what the key of the ConfigMap holds; None when the body is no ConfigMap."""
    try:
        return mapping(mapping(json.loads(body)).get("data")).get(key)
    except (ValueError, RecursionError):
        return None


def _get(source: CaConfigMap, path: str, name: str) -> tuple[int, bytes]:
    token = _mounted(source.service_account / "token")
    try:
        with limited(_LIMIT_SECONDS) as exchange:
            answer = _answer(source, path, token, exchange)
        if exchange.is_cut:  # what was cut may look like an end
            raise TimeoutError
    except (OSError, http.client.HTTPException) as error:
        raise TlsError(
            f"{name} holds Vault's CA, and the Kubernetes API does not answer: "
            f"{type(error).__name__}",
            hint=f"check the network path to {source.api_server} and the pod's service account",
        ) from None
    return answer


def _answer(source: CaConfigMap, path: str, token: str, exchange: Exchange) -> tuple[int, bytes]:
    context = ssl.create_default_context(cafile=str(source.service_account / "ca.crt"))
    connection = http.client.HTTPSConnection(source.api_server, context=context)
    address = (connection.host, connection.port)
    with socket.create_connection(address, _TIMEOUT_SECONDS) as opened:
        exchange.hold(opened)
        connection.sock = context.wrap_socket(opened, server_hostname=connection.host)
        try:
            connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
            response = connection.getresponse()
            return response.status, response.read(_LARGEST_BYTES)
        finally:
            connection.close()


def _mounted(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        raise TlsError(
            f"the pod's service account cannot be read from {path}: {error.strerror}",
            hint="set automountServiceAccountToken: true, or give the CA in VAULT_CACERT",
        ) from error
