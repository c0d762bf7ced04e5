"""What gRPC health and the metric `ready` say: SERVING or not, and at the end never again."""

from grpc_health.v1 import health, health_pb2

from istiod_ca_bridge.metrics import Metrics

CA_SERVICE = "istio.v1.auth.IstioCertificateService"


class PublishedHealth:
    """The one word for every listener."""

    def __init__(self, metrics: Metrics) -> None:
        self.servicer = health.aio.HealthServicer()
        self._metrics = metrics
        self._is_leaving = False
        self._serving = False

    async def publish(self, serving: bool) -> None:  # noqa: FBT001 - the callback's one fact
        """Say so from now on."""
        serving = serving and not self._is_leaving
        status = (
            health_pb2.HealthCheckResponse.SERVING
            if serving
            else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        self._serving = serving
        self._metrics.ready.set(serving)
        for service in ("", CA_SERVICE):
            await self.servicer.set(service, status)

    def serving(self) -> bool:
        """Return what is published."""
        return self._serving

    async def leave(self) -> None:
        """Say that it does not serve, whatever is published later."""
        self._is_leaving = True
        await self.publish(serving=False)
