"""Events (events.k8s.io/v1) and the status ConfigMap."""

import functools
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from kubernetes import client

from istiod_ca_bridge.kube_client import FAILURES, TIMEOUT_SECONDS, Cluster, unavailable
from istiod_ca_bridge.replica_report import KEY_PREFIX, ReplicaReport, parse_report, pod_of
from istiod_ca_bridge.status_record import (
    CONDITIONS_KEY,
    STATUS_CONFIG_MAP,
    Series,
    messages_of,
)
from istiod_ca_bridge.store import CERTIFICATE_SECRET

_CONTROLLER = "istio-hsm/istiod-ca-bridge"
_GONE = 404
_EXISTS = 409
_MAX_NOTE = 1024


class KubernetesStatus:
    """A StatusSink in one namespace, and what the replicas said there."""

    def __init__(self, cluster: Cluster, namespace: str, pod_name: str, pod_uid: str) -> None:
        self._cluster = cluster
        self._core = client.CoreV1Api(cluster.api)
        self._events = client.EventsV1Api(cluster.api)
        self._namespace = namespace
        self._instance = (pod_name or "istiod-ca-bridge")[:128]
        self._regarding = (
            {"apiVersion": "v1", "kind": "Pod", "name": pod_name, "uid": pod_uid}
            if pod_name and pod_uid
            else {"apiVersion": "v1", "kind": "Secret", "name": CERTIFICATE_SECRET}
        ) | {"namespace": namespace}

    async def post(self, series: Series) -> None:
        """Create the Event; patch it when it was before; create it again when it went stale."""
        calls = {
            "patch": functools.partial(self._repeat, series),
            "create": functools.partial(self._make, series),
        }
        verbs = ("create",) if series.count == 1 else ("patch", "create")
        for verb in verbs:
            try:
                await self._cluster.call(calls[verb])
            except FAILURES as error:
                status = getattr(error, "status", None)
                if status == _EXISTS and verb == "create":
                    return  # an answer was lost: it is there
                if status == _GONE and verb == "patch":
                    continue
                raise unavailable(verb, "events", error) from None
            else:
                return

    def _make(self, series: Series) -> None:
        happening = series.happening
        body: Any = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": series.name, "namespace": self._namespace},
            "eventTime": _micro(series.last),
            "reportingController": _CONTROLLER,
            "reportingInstance": self._instance,
            "action": "ManageCA",
            "reason": happening.reason,
            "note": happening.message[:_MAX_NOTE],
            "type": "Warning" if happening.is_warning else "Normal",
            "regarding": self._regarding,
        }
        self._events.create_namespaced_event(
            self._namespace, body, _request_timeout=TIMEOUT_SECONDS
        )

    def _repeat(self, series: Series) -> None:
        body = {"series": {"count": series.count, "lastObservedTime": _micro(series.last)}}
        self._events.patch_namespaced_event(
            series.name, self._namespace, body, _request_timeout=TIMEOUT_SECONDS
        )

    async def reports(self) -> tuple[ReplicaReport, ...]:
        """Return what each replica serves, less those whose pod is gone."""
        reports = [
            parse_report(key.removeprefix(KEY_PREFIX), text)
            for key, text in sorted((await self._held()).items())
            if key.startswith(KEY_PREFIX)
        ]
        return tuple([it for it in reports if await self._has_pod(pod_of(it.replica))])

    async def messages(self) -> dict[str, str]:
        """Return the message of each condition that the leader told, by its type."""
        return messages_of((await self._held()).get(CONDITIONS_KEY, ""))

    async def _held(self) -> Mapping[str, str]:
        try:
            found: Any = await self._cluster.call(
                functools.partial(
                    self._core.read_namespaced_config_map,
                    STATUS_CONFIG_MAP,
                    self._namespace,
                    _request_timeout=TIMEOUT_SECONDS,
                )
            )
        except FAILURES as error:
            if getattr(error, "status", None) == _GONE:
                return {}
            raise unavailable("get", f"configmaps {STATUS_CONFIG_MAP}", error) from None
        return found.data or {}

    async def _has_pod(self, name: str) -> bool:
        try:
            await self._cluster.call(
                functools.partial(
                    self._core.read_namespaced_pod,
                    name,
                    self._namespace,
                    _request_timeout=TIMEOUT_SECONDS,
                )
            )
        except FAILURES as error:
            if getattr(error, "status", None) == _GONE:
                return False
            raise unavailable("get", "pods", error) from None
        return True

    async def write(self, values: Mapping[str, str | None]) -> None:
        """Patch the ConfigMap, or create it."""
        calls = {
            "patch": functools.partial(self._patch, values),
            "create": functools.partial(self._create, values),
        }
        for verb in ("patch", "create", "patch"):  # another replica may create it meanwhile
            try:
                await self._cluster.call(calls[verb])
            except FAILURES as error:
                if getattr(error, "status", None) in {_GONE, _EXISTS}:
                    continue
                raise unavailable(verb, f"configmaps {STATUS_CONFIG_MAP}", error) from None
            else:
                return

    def _patch(self, values: Mapping[str, str | None]) -> None:
        self._core.patch_namespaced_config_map(
            STATUS_CONFIG_MAP,
            self._namespace,
            {"data": dict(values)},
            _request_timeout=TIMEOUT_SECONDS,
        )

    def _create(self, values: Mapping[str, str | None]) -> None:
        body = client.V1ConfigMap(
            metadata=client.V1ObjectMeta(name=STATUS_CONFIG_MAP),
            data={key: value for key, value in values.items() if value is not None},
        )
        self._core.create_namespaced_config_map(
            self._namespace, body, _request_timeout=TIMEOUT_SECONDS
        )


def _micro(moment: datetime) -> str:
    return f"{moment:%FT%T.%f}Z"
