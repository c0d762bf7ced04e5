"""Remote secrets in a Kubernetes cluster, and the API servers that they lead to."""

import base64
import binascii
import functools
from collections.abc import Mapping
from typing import Any

from kubernetes import client

from istiod_ca_bridge.errors import ClusterUnavailableError
from istiod_ca_bridge.kube_client import (
    FAILURES,
    TIMEOUT_SECONDS,
    Cluster,
    cluster_of,
    unavailable,
)
from istiod_ca_bridge.remote_kubeconfig import RemoteApi

_LABEL = "istio/multiCluster=true"


class KubernetesRemoteSecrets:
    """Lists the kubeconfigs of a namespace's remote secrets."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self._cluster = cluster
        self._core = client.CoreV1Api(cluster.api)
        self._namespace = namespace

    async def kubeconfigs(self) -> Mapping[str, Mapping[str, bytes]]:
        """Return each Secret's kubeconfigs by cluster, by the Secret's name."""
        ask = functools.partial(
            self._core.list_namespaced_secret,
            self._namespace,
            label_selector=_LABEL,
            _request_timeout=TIMEOUT_SECONDS,
        )
        try:
            found: Any = await self._cluster.call(ask)
            return {
                secret.metadata.name: {
                    name: base64.b64decode(data) for name, data in (secret.data or {}).items()
                }
                for secret in found.items
            }
        except FAILURES as error:
            raise unavailable("list", "secrets", error) from None
        except (binascii.Error, ValueError, TypeError):
            raise ClusterUnavailableError(
                "the API server's answer on secrets is malformed"
            ) from None


def connect_remote(remote: RemoteApi) -> Cluster:
    """Return the cluster behind the API server; nothing is asked yet."""
    configuration = client.Configuration(
        host=remote.server, api_key={"authorization": f"Bearer {remote.token}"}
    )
    configuration.ca_cert_data = remote.ca_pem
    configuration.tls_server_name = remote.tls_server_name or None
    return cluster_of(configuration)
