"""Pods of a Kubernetes cluster, asked for one question at a time: nothing is watched or kept."""

import functools
from typing import Any

from kubernetes import client

from istiod_ca_bridge.kube_client import FAILURES, TIMEOUT_SECONDS, Cluster, unavailable

_GONE = 404
_NOT_ENDED = "status.phase!=Succeeded,status.phase!=Failed"


class KubernetesPods:
    """Reads pods by name, and lists those of an account on a node."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._core = client.CoreV1Api(cluster.api)

    async def node_of(self, namespace: str, pod: str, uid: str, service_account: str) -> str:
        """Return the node of just this pod; empty when there is no such pod on a node."""
        read = functools.partial(
            self._core.read_namespaced_pod, pod, namespace, _request_timeout=TIMEOUT_SECONDS
        )
        try:
            found: Any = await self._cluster.call(read)
        except FAILURES as error:
            if getattr(error, "status", None) == _GONE:
                return ""
            raise unavailable("get", "pods", error) from None
        same = found.metadata.uid == uid and found.spec.service_account_name == service_account
        return (found.spec.node_name or "") if same else ""

    async def runs(self, node: str, namespace: str, service_account: str) -> bool:
        """Return whether a pod of this account that has not ended is on the node."""
        fields = f"spec.nodeName={node},spec.serviceAccountName={service_account},{_NOT_ENDED}"
        ask = functools.partial(
            self._core.list_namespaced_pod,
            namespace,
            field_selector=fields,
            limit=1,
            _request_timeout=TIMEOUT_SECONDS,
        )
        try:
            found: Any = await self._cluster.call(ask)
        except FAILURES as error:
            raise unavailable("list", "pods", error) from None
        return bool(found.items)
