"""The API server: how it is found, called on threads, and what its failures mean."""

import asyncio
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import urllib3.exceptions
from kubernetes import client, config
from urllib3.connection import HTTPConnection

from istiod_ca_bridge.errors import ClusterUnavailableError, ConfigError, ForbiddenByClusterError

T = TypeVar("T")

TIMEOUT_SECONDS = (5, 10)
"""To connect, to answer."""

_THREADS = 16
_FORBIDDEN = 403
_DENIED = {401, _FORBIDDEN}
_KEEPALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
]
"""A watch whose other end is gone is found out within half a minute."""


class Cluster:
    """One API server, called on threads of its own: when it hangs, nothing else does."""

    def __init__(self, api: client.ApiClient) -> None:
        self.api = api
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="kubernetes")

    def close(self) -> None:
        """End its threads, after what they are at."""
        self._threads.shutdown(wait=False)

    async def call(self, function: Callable[[], T]) -> T:
        """Return what the function returns, run on a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)


def connect(kubeconfig: Path | None) -> Cluster:
    """Return this pod's cluster, or that of a kubeconfig; ConfigError without either."""
    configuration = client.Configuration()
    try:
        if kubeconfig is None:
            config.load_incluster_config(  # type: ignore[no-untyped-call]  # untyped driver
                client_configuration=configuration
            )
        else:
            config.load_kube_config(  # type: ignore[no-untyped-call]  # untyped driver
                str(kubeconfig), client_configuration=configuration
            )
    except (config.ConfigException, OSError) as error:
        raise ConfigError(
            f"no Kubernetes API to talk to: {error}",
            hint="run in a pod with a ServiceAccount, set KUBECONFIG, or BRIDGE_STORE=directory",
        ) from None
    return cluster_of(configuration)


def cluster_of(configuration: client.Configuration) -> Cluster:
    """Return the cluster that a configuration leads to; nothing is asked yet."""
    configuration.retries = False
    configuration.connection_pool_maxsize = _THREADS
    configuration.socket_options = [*HTTPConnection.default_socket_options, *_KEEPALIVE]
    return Cluster(client.ApiClient(configuration))


def unavailable(verb: str, what: str, error: Exception) -> ClusterUnavailableError:
    """Return our error for a call that failed; the hint names a right that is missing."""
    if isinstance(error, client.ApiException) and error.status:
        kind = ForbiddenByClusterError if error.status == _FORBIDDEN else ClusterUnavailableError
        hint = f"grant {verb} on {what}" if error.status in _DENIED else ""
        return kind(f"the API server answers {error.status} to {verb} of {what}", hint=hint)
    return ClusterUnavailableError(f"the API server cannot be reached: {type(error).__name__}")


FAILURES = (client.ApiException, urllib3.exceptions.HTTPError, OSError)
"""What a call may raise."""
