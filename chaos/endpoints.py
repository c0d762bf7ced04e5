"""The ready replicas behind the CA's Service, as readiness probes tell, each second."""

import random
import threading
from collections.abc import Mapping
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_PERIOD_SECONDS = 1.0
_FAILURES = 2
"""So many probes must fail in a row before a replica gets no new connections."""
_TIMEOUT_SECONDS = 1.0
# A pool of its own: else a new channel inherits the backoff of one that nobody answered.
OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))


def is_serving(address: str) -> bool:
    """Tell whether gRPC health at an address says SERVING."""
    try:
        with grpc.insecure_channel(address, OPTIONS) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)  # its methods lack in the stubs' types
            reply = stub.Check(health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_SECONDS)
            return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)
    except grpc.RpcError:
        return False


class Endpoints:
    """Where new connections go."""

    def __init__(self, replicas: Mapping[str, str]) -> None:
        """`replicas`: the CA's address of each, by the address of its health."""
        self._failures = dict.fromkeys(replicas, _FAILURES)
        self._replicas = dict(replicas)
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._probe, args=[health], daemon=True) for health in replicas
        ]

    def start(self) -> None:
        """Begin to probe."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the probes."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def ready(self) -> list[str]:
        """Return the addresses that get connections."""
        return [
            address
            for health, address in self._replicas.items()
            if self._failures[health] < _FAILURES
        ]

    def any(self) -> str | None:
        """Return one of them at random; None while there is none."""
        ready = self.ready()
        return random.choice(ready) if ready else None  # noqa: S311 - spreads the load

    def _probe(self, health: str) -> None:
        while True:
            self._failures[health] = 0 if is_serving(health) else self._failures[health] + 1
            if self._stopping.wait(_PERIOD_SECONDS):
                return
