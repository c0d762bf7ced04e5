"""`serve`: the socket, the token, what watches over both, and an orderly end."""

import asyncio
import signal
import time

from grpc_health.v1 import health, health_pb2

from hsm_plugin import listening, server
from hsm_plugin.admission import Lane
from hsm_plugin.config import ServeConfig
from hsm_plugin.connection import Connection, TokenState
from hsm_plugin.control_service import Control
from hsm_plugin.first_kek import FirstKek
from hsm_plugin.log import event
from hsm_plugin.rsa_keys import RsaKeys
from hsm_plugin.server import Apis
from hsm_plugin.token_client import TokenClient
from hsm_plugin.token_memory import TokenMemory
from hsm_plugin.worker_process import WorkerSettings

_EXPIRY_SECONDS = 5.0
_START_LANE = Lane(b" start")
_START_SECONDS = 60.0
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
            cbc_labels=config.cbc_labels,
            gcm_iv=config.gcm_iv,
        ),
        queue_limit=config.queue_limit,
        hang_seconds=config.hang_seconds,
        forget=memory.clear,
    )
    health_servicer = health.aio.HealthServicer()

    async def on_change(state: TokenState) -> None:
        for name in ("", *server.services(apis)):
            await health_servicer.set(name, _HEALTH[state])
        if state is TokenState.USABLE:
            usable.set()
        else:
            usable.clear()

    usable = asyncio.Event()
    front = listening.front_of(config)
    connection = Connection(token, config.pin_file, on_change, config.return_seconds)
    apis = Apis(
        memory=memory,
        rsa_keys=RsaKeys(at_once=config.sessions, queue_limit=config.queue_limit),
        control=Control(config.pin_file, connection.reload, connection.try_pin),
        kubernetes_kek_id=config.kubernetes_kek_id,
        callers=listening.callers_of(config, front),
        kek_cipher=config.kek_cipher,
    )
    grpc_server = server.build(token, apis, health_servicer)
    try:
        await token.load_module()
        await on_change(TokenState.LOST)
        await listening.start(grpc_server, config, front)
    except BaseException:
        await token.close()
        raise

    connected = asyncio.create_task(connection.run())
    stopped = asyncio.create_task(stop.wait())
    aside = [asyncio.create_task(_expire(memory))]
    if config.kek_id:
        aside.append(asyncio.create_task(_first_kek(config, token).run(usable)))
    try:
        await asyncio.wait({connected, stopped}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        event("server.draining", "Draining: calls under way end, new ones are refused")
        for task in (connected, stopped, *aside):
            task.cancel()
        await health_servicer.enter_graceful_shutdown()
        await grpc_server.stop(config.drain_seconds)
        await asyncio.gather(connected, stopped, *aside, return_exceptions=True)
        await token.close()
        memory.clear()
        await listening.close(config, front)
        event("server.stopped", "Stopped")
    if not connected.cancelled():
        connected.result()  # raises what ended the loop


def _first_kek(config: ServeConfig, token: TokenClient) -> FirstKek:
    return FirstKek(
        config.kek_id,
        config.auto_create,
        lambda: token.bound(_START_LANE, time.monotonic() + _START_SECONDS),
        config.kek_cipher,
    )


async def _expire(memory: TokenMemory) -> None:
    """Never returns; cancel it."""
    while True:
        await asyncio.sleep(_EXPIRY_SECONDS)
        memory.expire()
