"""What gRPC health says of a bridge with workers: SERVING while at least one of them could sign."""

from grpc_health.v1 import health, health_pb2

from istiod_ca_bridge.published_health import CA_SERVICE


class PoolHealth:
    """The word for HEALTH_LISTEN; at the end never SERVING again."""

    def __init__(self) -> None:
        self.servicer = health.aio.HealthServicer()
        self.serving = False
        self._is_leaving = False

    async def publish(self, *, serving: bool) -> None:
        """Say so from now on."""
        self.serving = serving and not self._is_leaving
        status = (
            health_pb2.HealthCheckResponse.SERVING
            if self.serving
            else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        for service in ("", CA_SERVICE):
            await self.servicer.set(service, status)

    async def leave(self) -> None:
        """Say that it does not serve, whatever is published later."""
        self._is_leaving = True
        await self.publish(serving=False)
