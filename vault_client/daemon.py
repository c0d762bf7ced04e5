"""Wires the parts together and runs them until the process is told to stop."""

import asyncio
import signal
import time
from functools import partial
from http import HTTPStatus

from vault_client.agent import Agent, Rules
from vault_client.consumer import PluginConsumer
from vault_client.endpoints import Page, json_page, serve
from vault_client.files import Publisher
from vault_client.lease import Backoff
from vault_client.logs import Log
from vault_client.metrics import CONTENT_TYPE, Metrics
from vault_client.session import VaultSession
from vault_client.settings import Config
from vault_client.trial import TrialLogin
from vault_client.trust import TrustSource
from vault_client.vault import Vault


async def deliver(config: Config, *, once: bool) -> None:
    """Deliver once, or until SIGTERM or SIGINT.

    DeliveryError: the one delivery failed, or the output directory cannot be used at all.
    """
    log, metrics, stop = Log(), Metrics(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    publisher = Publisher(config.output, config.permissions, allow_disk=config.allow_disk)
    publisher.open()
    try:
        agent = _agent(config, publisher, log, metrics, once=once)
        log.info("process.started", once=once, output=str(config.output), vault=config.address)
        if once:
            await agent.run_once(stop, config.once_timeout_seconds)
        else:
            await _serve(config, agent, log, metrics, stop)
    finally:
        publisher.close()
    log.info("process.ended")


def _agent(
    config: Config, publisher: Publisher, log: Log, metrics: Metrics, *, once: bool
) -> Agent:
    trust = TrustSource(config.ca, refresh_seconds=config.ca_refresh_seconds, clock=time.monotonic)
    session = VaultSession(
        connect=lambda pem: Vault(
            config.address,
            namespace=config.namespace,
            ca_pem=pem,
            timeout_seconds=config.request_timeout_seconds,
        ),
        trust=trust,
        login=config.login,
        kv_path=config.kv_path,
        log=log,
        metrics=metrics,
    )
    consumer, trial = _consumer(config, log, once=once)
    return Agent(
        session=session,
        publisher=publisher,
        consumer=consumer,
        trial=trial,
        rules=Rules(
            names=config.names,
            policies=config.policies,
            poll_seconds=config.poll_seconds,
            wipe_on_exit=config.wipe_on_exit,
        ),
        log=log,
        metrics=metrics,
        backoff=Backoff(cap_seconds=config.retry_cap_seconds),
    )


def _consumer(
    config: Config, log: Log, *, once: bool
) -> tuple[PluginConsumer | None, TrialLogin | None]:
    """Return the plugin, and the trial that it makes; an init container does not wait for it."""
    plugin = config.acknowledgement
    if plugin is None:
        return None, None
    consumer = PluginConsumer(
        plugin.socket, timeout_seconds=plugin.timeout_seconds, patient=not once
    )
    return consumer, TrialLogin(consumer, plugin.trial, log)


async def _serve(
    config: Config, agent: Agent, log: Log, metrics: Metrics, stop: asyncio.Event
) -> None:
    if config.http is None:
        await agent.run(stop)
        return
    server = await serve(
        config.http,
        {
            "/healthz": lambda: json_page({"alive": agent.alive}, good=agent.alive),
            "/readyz": lambda: json_page(agent.status.as_fields(), good=agent.status.in_place),
            "/metrics": partial(_metrics_page, metrics),
        },
    )
    async with server:
        host, port = server.sockets[0].getsockname()[:2]
        log.info("http.listening", host=host, port=port)
        await agent.run(stop)


def _metrics_page(metrics: Metrics) -> Page:
    return Page(HTTPStatus.OK, CONTENT_TYPE, metrics.exposition())
