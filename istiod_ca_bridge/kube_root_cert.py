"""The root certificate's ConfigMaps in a Kubernetes cluster, and the revocation list's."""

import functools
from typing import Any

from kubernetes import client

from istiod_ca_bridge.kube_client import FAILURES, TIMEOUT_SECONDS, Cluster, unavailable
from istiod_ca_bridge.kube_watch import watched
from istiod_ca_bridge.observed import Change
from istiod_ca_bridge.root_cert import CONFIG_MAP, KEY, Events

_GONE = 404
_EXISTS = 409


class KubernetesRootCertificates:
    """Reads by list and watch, writes by create and patch."""

    def __init__(self, cluster: Cluster, name: str = CONFIG_MAP, key: str = KEY) -> None:
        self._cluster = cluster
        self._name = name
        self._key = key
        self._core = client.CoreV1Api(cluster.api)

    def namespaces(self) -> Events:
        """Yield the namespaces that are not being deleted."""
        return watched("namespaces", self._core.list_namespace, _namespace)

    def held(self) -> Events:
        """Yield what each namespace's ConfigMap holds."""
        request = functools.partial(
            self._core.list_config_map_for_all_namespaces,
            # So that the right to list and watch can be bound to the name.
            field_selector=f"metadata.name={self._name}",
        )
        return watched(f"configmaps {self._name}", request, functools.partial(_held, self._key))

    async def write(self, namespace: str, roots_pem: str, *, exists: bool) -> None:
        """Patch what exists, else create it; whichever it takes when that changed meanwhile."""
        for patch in (exists, not exists):
            verb = "patch" if patch else "create"
            try:
                await self._cluster.call(
                    functools.partial(self._patch if patch else self._create, namespace, roots_pem)
                )
            except FAILURES as error:
                status = getattr(error, "status", None)
                if status not in {_GONE, _EXISTS}:
                    raise unavailable(verb, f"configmaps {self._name}", error) from None
            else:
                return

    def _create(self, namespace: str, roots_pem: str) -> None:
        body = client.V1ConfigMap(
            metadata=client.V1ObjectMeta(
                name=self._name, namespace=namespace, labels={"istio.io/config": "true"}
            ),
            data={self._key: roots_pem},
        )
        self._core.create_namespaced_config_map(namespace, body, _request_timeout=TIMEOUT_SECONDS)

    def _patch(self, namespace: str, roots_pem: str) -> None:
        self._core.patch_namespaced_config_map(
            self._name,
            namespace,
            {"data": {self._key: roots_pem}},
            _request_timeout=TIMEOUT_SECONDS,
        )


def _namespace(body: dict[str, Any]) -> Change[str]:
    leaving = body["metadata"].get("deletionTimestamp") is not None
    return Change(body["metadata"]["name"], None if leaving else "")


def _held(key: str, body: dict[str, Any]) -> Change[str]:
    return Change(body["metadata"]["namespace"], (body.get("data") or {}).get(key, ""))
