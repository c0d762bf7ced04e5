"""The gRPC health of the services: SERVING while the token is usable and calls may use keys."""

import asyncio
from collections.abc import Callable, Sequence

from grpc_health.v1 import health, health_pb2

from hsm_plugin.connection import TokenState


class ServingHealth:
    """Sets the health of all services together. Lives on the event loop."""

    def __init__(self, servicer: health.aio.HealthServicer, services: Sequence[str]) -> None:
        self._servicer = servicer
        self._services = ("", *services)
        self._state = TokenState.LOST
        self._why_keys_rest: Callable[[], str] = str
        self._telling: set[asyncio.Task[None]] = set()

    def ask(self, why_keys_rest: Callable[[], str]) -> None:
        """Ask this too from now on: why no key is used; empty when keys are used."""
        self._why_keys_rest = why_keys_rest

    async def token_is(self, state: TokenState) -> None:
        """Take the token's state, and tell."""
        self._state = state
        await self._tell()

    def changed(self) -> None:
        """Tell soon, since the answer to what is asked may be another one now."""
        task = asyncio.get_running_loop().create_task(self._tell())
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _tell(self) -> None:
        usable = self._state is TokenState.USABLE and not self._why_keys_rest()
        status = (
            health_pb2.HealthCheckResponse.SERVING
            if usable
            else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        for name in self._services:
            await self._servicer.set(name, status)
