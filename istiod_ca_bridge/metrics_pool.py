"""The figures of a bridge about its worker processes, and those of its own process."""

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)


class PoolMetrics:
    """Each worker has its figures from the start, also while it does not run."""

    def __init__(self, count: int) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # untyped there
        registry = self._registry = CollectorRegistry()
        self._process = CollectorRegistry()
        ProcessCollector(registry=self._process)
        self._serving = Gauge(
            "istiod_ca_bridge_worker_serving",
            "1 when a worker process told within the last seconds that it could sign",
            ["worker"],
            registry=registry,
        )
        self._restarts = Counter(
            "istiod_ca_bridge_worker_restarts",
            "Worker processes that ended without being asked to, and were started again",
            ["worker"],
            registry=registry,
        )
        for number in range(1, count + 1):
            self.serves(number, serving=False)
            self._restarts.labels(str(number))

    def serves(self, number: int, *, serving: bool) -> None:
        """Record whether a worker serves."""
        self._serving.labels(str(number)).set(serving)

    def restarted(self, number: int) -> None:
        """Count a worker that has to be started again."""
        self._restarts.labels(str(number)).inc()

    def exposition(self) -> str:
        """Return the figures about the workers."""
        return generate_latest(self._registry).decode()

    def process(self) -> str:
        """Return the figures of this process."""
        return generate_latest(self._process).decode()
