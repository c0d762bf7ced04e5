"""The exec probe: asks the bridge beside it whether it could sign now."""

from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from istiod_ca_bridge.errors import NotServingError
from istiod_ca_bridge.setting_values import Address

_SECONDS = 3.0
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "[::]": "[::1]"}  # noqa: S104 - looked up


def probe(listen: Address | None) -> None:
    """Return when the bridge serves; NotServingError when it does not, or does not answer."""
    if listen is None:
        raise NotServingError(
            "nobody can be asked: HEALTH_LISTEN is not set",
            hint="set it for serve and for this probe alike, such as 127.0.0.1:15013",
        )
    address = Address(_ANYWHERE.get(listen.host, listen.host), listen.port)
    with grpc.insecure_channel(str(address), (("grpc.enable_http_proxy", 0),)) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # its types lack the methods
        try:
            status = stub.Check(health_pb2.HealthCheckRequest(), timeout=_SECONDS).status
        except grpc.RpcError:
            raise NotServingError(
                f"nothing answers on {address}", hint="is `istiod-ca-bridge serve` running?"
            ) from None
    if status != health_pb2.HealthCheckResponse.SERVING:
        raise NotServingError(
            "the bridge is there but does not serve",
            hint="its log says what it waits for: the plugin, or the CA's certificate",
        )
