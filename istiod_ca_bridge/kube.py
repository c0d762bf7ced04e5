"""Kubernetes Secrets as the store; with its parts kube_…, the only user of the client."""

import asyncio
import base64
import binascii
from collections.abc import Mapping
from typing import Any

import urllib3.exceptions
from kubernetes import client

from istiod_ca_bridge.errors import SecretExistsError, StoreUnavailableError
from istiod_ca_bridge.kube_client import TIMEOUT_SECONDS, Cluster
from istiod_ca_bridge.store import SECRET_TYPE, StoredSecret

_NOT_FOUND = 404
_CONFLICT = 409
_RIGHTS = {401, 403}


class KubernetesStore:
    """A VersionedStore on the Secrets of one namespace."""

    def __init__(self, core: client.CoreV1Api, namespace: str) -> None:
        self._core = core
        self._namespace = namespace

    async def read(self, name: str) -> Mapping[str, bytes] | None:
        """Return the Secret's data; None when it does not exist."""
        stored = await self.load(name)
        return stored.values if stored else None

    async def load(self, name: str) -> StoredSecret | None:
        """Return the Secret's data and resourceVersion; None when it does not exist."""
        return await asyncio.to_thread(self._load, name)

    async def create(self, name: str, values: Mapping[str, bytes]) -> None:
        """Create the Secret, or raise SecretExistsError."""
        await asyncio.to_thread(self._create, name, values)

    async def replace(self, name: str, before: StoredSecret, values: Mapping[str, bytes]) -> None:
        """Patch the Secret; its type stays, for an operator may have chosen it."""
        await asyncio.to_thread(self._replace, name, before, values)

    async def delete(self, name: str) -> None:
        """Delete the Secret."""
        await asyncio.to_thread(self._delete, name)

    def _load(self, name: str) -> StoredSecret | None:
        try:
            secret: Any = self._core.read_namespaced_secret(
                name, self._namespace, _request_timeout=TIMEOUT_SECONDS
            )
            values = {
                key: base64.b64decode(value, validate=True)
                for key, value in (secret.data or {}).items()
            }
            return StoredSecret(values, secret.metadata.resource_version)
        except client.ApiException as error:
            if error.status == _NOT_FOUND:
                return None
            raise _unavailable("read", name, error) from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise _unreachable(error) from None
        except (binascii.Error, ValueError, TypeError):
            raise StoreUnavailableError(f"the API server's answer on {name} is malformed") from None

    def _create(self, name: str, values: Mapping[str, bytes]) -> None:
        body = client.V1Secret(
            metadata=client.V1ObjectMeta(name=name, namespace=self._namespace),
            type=SECRET_TYPE,
            data=_encoded(values),
        )
        try:
            self._core.create_namespaced_secret(
                self._namespace, body, _request_timeout=TIMEOUT_SECONDS
            )
        except client.ApiException as error:
            if error.status == _CONFLICT:
                raise SecretExistsError(f"{name} exists") from None
            raise _unavailable("create", name, error) from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise _unreachable(error) from None

    def _replace(self, name: str, before: StoredSecret, values: Mapping[str, bytes]) -> None:
        dropped = dict.fromkeys(before.values.keys() - values.keys())
        body = {
            "metadata": {"resourceVersion": before.version},
            "data": {**dropped, **_encoded(values)},
        }
        try:
            self._core.patch_namespaced_secret(
                name, self._namespace, body, _request_timeout=TIMEOUT_SECONDS
            )
        except client.ApiException as error:
            if error.status in {_CONFLICT, _NOT_FOUND}:
                raise SecretExistsError(f"{name} was changed by another") from None
            raise _unavailable("patch", name, error) from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise _unreachable(error) from None

    def _delete(self, name: str) -> None:
        try:
            self._core.delete_namespaced_secret(
                name, self._namespace, _request_timeout=TIMEOUT_SECONDS
            )
        except client.ApiException as error:
            if error.status != _NOT_FOUND:
                raise _unavailable("delete", name, error) from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise _unreachable(error) from None


def _encoded(values: Mapping[str, bytes]) -> dict[str, str | bytes]:
    return {key: base64.b64encode(value).decode() for key, value in values.items()}


def kubernetes_store(cluster: Cluster, namespace: str) -> KubernetesStore:
    """Return the store of a namespace."""
    return KubernetesStore(client.CoreV1Api(cluster.api), namespace)


def _unavailable(verb: str, name: str, error: client.ApiException) -> StoreUnavailableError:
    hint = f"grant {verb} on Secret {name}" if error.status in _RIGHTS else ""
    return StoreUnavailableError(
        f"the API server answers {error.status} to {verb} of Secret {name}", hint=hint
    )


def _unreachable(error: Exception) -> StoreUnavailableError:
    return StoreUnavailableError(f"the API server cannot be reached: {type(error).__name__}")
