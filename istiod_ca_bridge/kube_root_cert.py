"""The root certificate's ConfigMaps in a Kubernetes cluster."""

import functools
from typing import Any

from kubernetes import client

from istiod_ca_bridge.kube_client import FAILURES, TIMEOUT_SECONDS, Cluster, unavailable
from istiod_ca_bridge.kube_watch import watched
from istiod_ca_bridge.observed import Change
from istiod_ca_bridge.root_cert import CONFIG_MAP, KEY, Events

_GONE = 404
_EXISTS = 409
_SELECTOR = f"metadata.name={CONFIG_MAP}"
"""So that the right to list and watch can be bound to the name."""


class KubernetesRootCertificates:
    """Reads by list and watch, writes by create and patch."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._core = client.CoreV1Api(cluster.api)

    def namespaces(self) -> Events:
        """Yield the namespaces that are not being deleted."""
        return watched("namespaces", self._core.list_namespace, _namespace)

    def held(self) -> Events:
        """Yield what each namespace's ConfigMap holds."""
        request = functools.partial(
            self._core.list_config_map_for_all_namespaces, field_selector=_SELECTOR
        )
        return watched(f"configmaps {CONFIG_MAP}", request, _held)

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
                    raise unavailable(verb, f"configmaps {CONFIG_MAP}", error) from None
            else:
                return

    def _create(self, namespace: str, roots_pem: str) -> None:
        body = client.V1ConfigMap(
            metadata=client.V1ObjectMeta(
                name=CONFIG_MAP, namespace=namespace, labels={"istio.io/config": "true"}
            ),
            data={KEY: roots_pem},
        )
        self._core.create_namespaced_config_map(namespace, body, _request_timeout=TIMEOUT_SECONDS)

    def _patch(self, namespace: str, roots_pem: str) -> None:
        self._core.patch_namespaced_config_map(
            CONFIG_MAP, namespace, {"data": {KEY: roots_pem}}, _request_timeout=TIMEOUT_SECONDS
        )


def _namespace(body: dict[str, Any]) -> Change[str]:
    leaving = body["metadata"].get("deletionTimestamp") is not None
    return Change(body["metadata"]["name"], None if leaving else "")


def _held(body: dict[str, Any]) -> Change[str]:
    return Change(body["metadata"]["namespace"], (body.get("data") or {}).get(KEY, ""))
