"""A coordination.k8s.io Lease."""

import functools
from datetime import datetime
from typing import Any

from kubernetes import client

from istiod_ca_bridge.election import LeaseRecord
from istiod_ca_bridge.errors import ClusterUnavailableError, SecretExistsError
from istiod_ca_bridge.kube_client import FAILURES, TIMEOUT_SECONDS, Cluster, unavailable

LEASE = "istiod-ca-bridge"

_GONE = 404
_CONFLICT = 409


class KubernetesLease:
    """The Lease of the bridges in one namespace."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self._cluster = cluster
        self._api = client.CoordinationV1Api(cluster.api)
        self._namespace = namespace

    async def read(self) -> LeaseRecord | None:
        """Return what the Lease says; None when there is none."""
        try:
            lease: Any = await self._cluster.call(
                functools.partial(
                    self._api.read_namespaced_lease,
                    LEASE,
                    self._namespace,
                    _request_timeout=TIMEOUT_SECONDS,
                )
            )
            return LeaseRecord(
                holder=lease.spec.holder_identity or "",
                duration=float(lease.spec.lease_duration_seconds or 0),
                transitions=lease.spec.lease_transitions or 0,
                revision=lease.metadata.resource_version,
            )
        except FAILURES as error:
            if getattr(error, "status", None) == _GONE:
                return None
            raise unavailable("get", f"leases {LEASE}", error) from None
        except (AttributeError, TypeError, ValueError):
            raise ClusterUnavailableError(
                "the API server's answer on the Lease is malformed"
            ) from None

    async def write(self, record: LeaseRecord, now: datetime, *, is_new_holder: bool) -> None:
        """Create the Lease, or patch it at its resourceVersion."""
        moment = f"{now:%FT%T.%f}Z"
        spec: dict[str, Any] = {
            "holderIdentity": record.holder,
            "leaseDurationSeconds": max(1, round(record.duration)),
            "leaseTransitions": record.transitions,
            "renewTime": moment,
        }
        if is_new_holder:
            spec["acquireTime"] = moment
        verb = "patch" if record.revision else "create"
        try:
            await self._cluster.call(functools.partial(self._write, record.revision, spec))
        except FAILURES as error:
            if getattr(error, "status", None) in {_CONFLICT, _GONE}:
                raise SecretExistsError(f"{LEASE} was written by another") from None
            raise unavailable(verb, f"leases {LEASE}", error) from None

    def _write(self, revision: str, spec: dict[str, Any]) -> None:
        if revision:
            self._api.patch_namespaced_lease(
                LEASE,
                self._namespace,
                {"metadata": {"resourceVersion": revision}, "spec": spec},
                _request_timeout=TIMEOUT_SECONDS,
            )
        else:
            body: Any = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": LEASE},
                "spec": spec,
            }
            self._api.create_namespaced_lease(
                self._namespace, body, _request_timeout=TIMEOUT_SECONDS
            )
