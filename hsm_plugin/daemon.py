"""`serve`: the socket, the token, what watches over both, and an orderly end."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc
from grpc_health.v1 import health

from hsm_plugin import auditing, listening, monitoring, server
from hsm_plugin.admission import Lane
from hsm_plugin.auditing import Auditing
from hsm_plugin.config import ServeConfig
from hsm_plugin.connection import Connection, TokenState
from hsm_plugin.control_service import Control
from hsm_plugin.dek_stock import DekStock
from hsm_plugin.dek_supply import DekSupply
from hsm_plugin.first_kek import FirstKek
from hsm_plugin.log import event
from hsm_plugin.metrics import Kept, Metrics, Present
from hsm_plugin.rsa_keys import RsaKeys
from hsm_plugin.server import Apis
from hsm_plugin.serving_health import ServingHealth
from hsm_plugin.sightings import Sightings
from hsm_plugin.token_client import TokenClient
from hsm_plugin.token_memory import TokenMemory
from hsm_plugin.watch import Watch
from hsm_plugin.witness import CallWitness
from hsm_plugin.worker_process import WorkerSettings

_EXPIRY_SECONDS = 5.0
_START_LANE = Lane(b" start")
_START_SECONDS = 60.0


async def serve(config: ServeConfig) -> None:
    """Serve until SIGTERM or SIGINT, then drain and leave no socket behind."""
    stop = _stop_signal()
    memory, metrics, stock = TokenMemory(time.monotonic), Metrics(), DekStock(time.monotonic)
    forget = _forgetting(memory, stock)
    token = _token_client(config, forget)
    health_servicer = health.aio.HealthServicer()

    async def on_change(state: TokenState) -> None:
        await serving_health.token_is(state)
        if state is TokenState.USABLE:
            usable.set()
        else:
            usable.clear()

    usable = asyncio.Event()
    front = listening.front_of(config)
    callers = listening.callers_of(config, front)
    witness = CallWitness(metrics.ended, callers.fields_of, config.kek_cipher)
    supply = DekSupply(stock, token, config.kek_cipher, witness, is_on=config.dek_stock)
    connection = Connection(token, config.pin_file, on_change, config.return_seconds)
    apis = Apis(
        memory=memory,
        rsa_keys=RsaKeys(at_once=config.sessions, queue_limit=config.queue_limit),
        control=Control(config.pin_file, connection.reload, connection.try_pin),
        kubernetes_kek_id=config.kubernetes_kek_id,
        callers=callers,
        kek_cipher=config.kek_cipher,
        witness=witness,
        audit_head=witness.head,
        forget=forget,
        supply=supply,
    )
    serving_health = ServingHealth(health_servicer, server.services(apis))
    grpc_server = server.build(token, apis, health_servicer)
    try:
        await token.load_module()
        audit = _audited(config, token, witness, serving_health)
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
        async with _monitored(config, metrics, token, Kept(memory, stock), audit):
            await asyncio.wait({connected, stopped}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        event("server.draining", "Draining: calls under way end, new ones are refused")
        tasks = (connected, stopped, *aside)
        for task in tasks:
            task.cancel()
        await _end_calls(grpc_server, health_servicer, supply, config.drain_seconds)
        await asyncio.gather(*tasks, return_exceptions=True)
        await _close(token, audit)
        forget()
        await listening.close(config, front)
        event("server.stopped", "Stopped")
    if not connected.cancelled():
        connected.result()  # raises what ended the loop


def _stop_signal() -> asyncio.Event:
    """Return what is set by SIGTERM and SIGINT."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


def _forgetting(memory: TokenMemory, stock: DekStock) -> Callable[[], None]:
    def forget() -> None:
        memory.clear()
        stock.clear()

    return forget


def _token_client(config: ServeConfig, forget: Callable[[], None]) -> TokenClient:
    return TokenClient(
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
        forget=forget,
    )


def _first_kek(config: ServeConfig, token: TokenClient) -> FirstKek:
    return FirstKek(
        config.kek_id,
        config.auto_create,
        lambda: token.bound(_START_LANE, time.monotonic() + _START_SECONDS),
        config.kek_cipher,
    )


def _audited(
    config: ServeConfig, token: TokenClient, witness: CallWitness, serving_health: ServingHealth
) -> Auditing | None:
    """Return the audit log that the witness writes to from now on, where one is asked for."""
    if config.audit is None:
        return None
    audit = auditing.begin(config.audit, config.state_dir, token)
    witness.audit = audit.log
    serving_health.ask(audit.why_keys_rest)
    audit.log.on_change = serving_health.changed
    return audit


async def _end_calls(
    grpc_server: grpc.aio.Server,
    health_servicer: health.aio.HealthServicer,
    supply: DekSupply,
    seconds: float,
) -> None:
    """Return when no call is under way any more; they have so many seconds."""
    await health_servicer.enter_graceful_shutdown()
    await supply.close()
    await grpc_server.stop(seconds)


async def _close(token: TokenClient, audit: Auditing | None) -> None:
    """Have the token sign the log's end before it is left."""
    if audit is not None:
        await audit.close()
    await token.close()


@asynccontextmanager
async def _monitored(
    config: ServeConfig,
    metrics: Metrics,
    token: TokenClient,
    kept: Kept,
    audit: Auditing | None,
) -> AsyncIterator[None]:
    """While inside, /metrics is served where that is asked for."""
    if config.metrics_listen is None:
        yield
        return
    sightings = Sightings()
    metrics.show(Present(token.admission, token.breaker, kept, sightings, audit))
    watch = Watch(token, sightings, config.watched_certificates)

    def why_not_ready() -> str:
        if token.breaker.is_open:
            return token.breaker.reason
        return audit.why_keys_rest() if audit else ""

    async with monitoring.serving(config.metrics_listen, metrics, watch, why_not_ready):
        yield


async def _expire(memory: TokenMemory) -> None:
    """Never returns; cancel it."""
    while True:
        await asyncio.sleep(_EXPIRY_SECONDS)
        memory.expire()
