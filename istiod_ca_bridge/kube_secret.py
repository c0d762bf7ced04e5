"""One Secret that is written over, safe with several writers: by its resourceVersion."""

import base64
import binascii
import functools
from collections.abc import Mapping
from typing import Any

from kubernetes import client

from istiod_ca_bridge.errors import SecretExistsError, StoreUnavailableError
from istiod_ca_bridge.kube_client import FAILURES, TIMEOUT_SECONDS, Cluster, unavailable
from istiod_ca_bridge.store import StoredSecret

TLS_TYPE = "kubernetes.io/tls"
_GONE = 404
_CONFLICT = 409


class KubernetesSecret:
    """A ReplaceableSecret of some type."""

    def __init__(self, cluster: Cluster, namespace: str, name: str, kind: str) -> None:
        self._cluster = cluster
        self._core = client.CoreV1Api(cluster.api)
        self._namespace = namespace
        self._name = name
        self._kind = kind

    async def read(self) -> StoredSecret | None:
        """Return the Secret; None when there is none."""
        try:
            secret: Any = await self._cluster.call(
                functools.partial(
                    self._core.read_namespaced_secret,
                    self._name,
                    self._namespace,
                    _request_timeout=TIMEOUT_SECONDS,
                )
            )
            values = {key: base64.b64decode(data) for key, data in (secret.data or {}).items()}
        except FAILURES as error:
            if getattr(error, "status", None) == _GONE:
                return None
            raise self._unavailable("get", error) from None
        except (binascii.Error, ValueError, TypeError):
            raise StoreUnavailableError(
                f"the API server's answer on {self._name} is malformed"
            ) from None
        return StoredSecret(values, secret.metadata.resource_version)

    async def write(self, values: Mapping[str, bytes], version: str | None) -> None:
        """Create the Secret, or replace the values of that version."""
        data = {key: base64.b64encode(value).decode() for key, value in values.items()}
        call = (
            functools.partial(self._create, data)
            if version is None
            else functools.partial(self._patch, data, version)
        )
        try:
            await self._cluster.call(call)
        except FAILURES as error:
            if getattr(error, "status", None) in {_CONFLICT, _GONE}:
                raise SecretExistsError(f"{self._name} was written by another") from None
            raise self._unavailable("create" if version is None else "patch", error) from None

    def _create(self, data: Mapping[str, str]) -> None:
        body = client.V1Secret(
            metadata=client.V1ObjectMeta(name=self._name, namespace=self._namespace),
            type=self._kind,
            data=dict(data),
        )
        self._core.create_namespaced_secret(self._namespace, body, _request_timeout=TIMEOUT_SECONDS)

    def _patch(self, data: Mapping[str, str], version: str) -> None:
        self._core.patch_namespaced_secret(
            self._name,
            self._namespace,
            {"metadata": {"resourceVersion": version}, "data": dict(data)},
            _request_timeout=TIMEOUT_SECONDS,
        )

    def _unavailable(self, verb: str, error: Exception) -> StoreUnavailableError:
        told = unavailable(verb, f"Secret {self._name}", error)
        return StoreUnavailableError(str(told), hint=told.hint)
