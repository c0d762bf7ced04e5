"""`serve`: the socket, the token, what watches over both, and an orderly end."""

import asyncio
import signal
import time

import grpc
from grpc_health.v1 import health, health_pb2

from hsm_plugin import server, socket_file
from hsm_plugin.callers import Callers
from hsm_plugin.config import MESH_GID, ServeConfig
from hsm_plugin.connection import Connection, TokenState
from hsm_plugin.control_service import Control
from hsm_plugin.errors import ConfigError
from hsm_plugin.log import event
from hsm_plugin.rsa_keys import RsaKeys
from hsm_plugin.server import Apis
from hsm_plugin.token_client import TokenClient
from hsm_plugin.token_memory import TokenMemory
from hsm_plugin.worker_process import WorkerSettings

_EXPIRY_SECONDS = 5.0
_HEALTH = {
    TokenState.USABLE: health_pb2.HealthCheckResponse.SERVING,
    TokenState.LOST: health_pb2.HealthCheckResponse.NOT_SERVING,
}


async def serve(config: ServeConfig) -> None:
    """Serve until SIGTERM or SIGINT, then drain and leave no socket behind."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    memory = TokenMemory(time.monotonic)
    token = TokenClient(
        WorkerSettings(
            module=config.module,
            token_label=config.token_label,
            pin_file=config.pin_file,
            state_dir=config.state_dir,
            threads=config.sessions,
        ),
        queue_limit=config.queue_limit,
        hang_seconds=config.hang_seconds,
        forget=memory.clear,
    )
    health_servicer = health.aio.HealthServicer()

    async def on_change(state: TokenState) -> None:
        for name in ("", *server.services(apis)):
            await health_servicer.set(name, _HEALTH[state])

    connection = Connection(token, config.pin_file, on_change)
    apis = Apis(
        memory=memory,
        rsa_keys=RsaKeys(at_once=config.sessions, queue_limit=config.queue_limit),
        control=Control(config.pin_file, connection.reload, connection.try_pin),
        kubernetes_kek_id=config.kubernetes_kek_id,
        callers=Callers(),
    )
    grpc_server = server.build(token, apis, health_servicer)
    try:
        await token.load_module()
        _listen(grpc_server, config)
    except BaseException:
        await token.close()
        raise

    await on_change(TokenState.LOST)
    await grpc_server.start()
    event("server.serving", f"Serving on socket: {config.socket}")
    connected = asyncio.create_task(connection.run())
    stopped = asyncio.create_task(stop.wait())
    expiry = asyncio.create_task(_expire(memory))
    try:
        await asyncio.wait({connected, stopped}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        event("server.draining", "Draining: calls under way end, new ones are refused")
        for task in (connected, stopped, expiry):
            task.cancel()
        await health_servicer.enter_graceful_shutdown()
        await grpc_server.stop(config.drain_seconds)
        await asyncio.gather(connected, stopped, expiry, return_exceptions=True)
        await token.close()
        memory.clear()
        config.socket.unlink(missing_ok=True)
        event("server.stopped", "Stopped")
    if not connected.cancelled():
        connected.result()  # raises what ended the loop


async def _expire(memory: TokenMemory) -> None:
    """Never returns; cancel it."""
    while True:
        await asyncio.sleep(_EXPIRY_SECONDS)
        memory.expire()


def _listen(grpc_server: grpc.aio.Server, config: ServeConfig) -> None:
    socket_file.claim(config.socket)
    try:
        with socket_file.narrow_umask():
            grpc_server.add_insecure_port(f"unix:{config.socket}")
    except RuntimeError:
        raise ConfigError(
            f"the socket {config.socket} cannot be made",
            hint="choose a SOCKET in a folder that this process may write",
        ) from None
    if not socket_file.share_with_group(config.socket, MESH_GID):
        event(
            "socket.group",
            f"The socket keeps this process's group: it may not be given to {MESH_GID}",
        )
    event("server.listening", f"KMS Plugin Listening on : {config.socket}")
