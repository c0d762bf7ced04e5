"""The process: lifecycle, TLS front, gRPC server, health, and an orderly end."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from datetime import datetime
from pathlib import Path

import grpc

from istiod_ca_bridge.admission import Admission
from istiod_ca_bridge.adoption import Adoption
from istiod_ca_bridge.authn import TrustDomain
from istiod_ca_bridge.authority import Authority
from istiod_ca_bridge.ca_service import CertificateService, ServiceSettings
from istiod_ca_bridge.ca_wiring import wire_ca, wire_revocations
from istiod_ca_bridge.config import Config
from istiod_ca_bridge.files import replace_file
from istiod_ca_bridge.grpc_servers import ca_server, health_server
from istiod_ca_bridge.hsm_key import HsmPlugin
from istiod_ca_bridge.impersonation import NodeAgents
from istiod_ca_bridge.indirect_serving import IndirectServing
from istiod_ca_bridge.issuance_log import issuance_log
from istiod_ca_bridge.istiod_tls import ISTIOD_TLS_SECRET, IstiodTls
from istiod_ca_bridge.jwks_file import JwksFile
from istiod_ca_bridge.key_blocklist import KeyBlocklist
from istiod_ca_bridge.kube_client import Cluster, connect
from istiod_ca_bridge.kube_pods import KubernetesPods
from istiod_ca_bridge.kube_root_cert import KubernetesRootCertificates
from istiod_ca_bridge.kube_secret import TLS_TYPE, KubernetesSecret
from istiod_ca_bridge.log import EventLog
from istiod_ca_bridge.metrics import Metrics
from istiod_ca_bridge.metrics_endpoint import metrics_endpoint
from istiod_ca_bridge.mode_wiring import csr_signer, plug_in_directory
from istiod_ca_bridge.private_folder import private_folder
from istiod_ca_bridge.published_health import PublishedHealth
from istiod_ca_bridge.readiness import Readiness
from istiod_ca_bridge.root_cert import CRL
from istiod_ca_bridge.root_publisher import RootPublisher, crl_publisher
from istiod_ca_bridge.served_place import ServedPlace
from istiod_ca_bridge.tls_front import FrontLimits, TlsFront, bind
from istiod_ca_bridge.tls_serving import TlsServing
from istiod_ca_bridge.tokens import remote_clusters, token_authenticator
from istiod_ca_bridge.workload_issuer import WorkloadIssuer

_SIGN_AT_ONCE = 128
"""Enough to fill the calls to the plugin; who waits does so in order, before this."""


async def serve(
    config: Config,
    clock: Callable[[], datetime],
    log: EventLog,
    stop: asyncio.Event,
    place: ServedPlace | None = None,
) -> None:
    """Serve until `stop` is set, then drain; raises a BridgeError when only a person can help."""
    place = place or ServedPlace(lambda: bind(config.listen.host, config.listen.port))
    with private_folder() as folder:
        async with HsmPlugin(config.plugin_socket) as keys:
            await _Process(config, clock, log, keys, folder, place).run(stop)


class _StopRequestedError(Exception):
    """Ends the task group; never leaves this module."""


class _Process:
    def __init__(
        self,
        config: Config,
        clock: Callable[[], datetime],
        log: EventLog,
        keys: HsmPlugin,
        folder: Path,
        place: ServedPlace,
    ) -> None:
        self._config = config
        self._place = place
        self._clock = clock
        self._log = log
        self._upstream = folder / "grpc"
        self._front = TlsFront(
            self._upstream,
            folder,
            log,
            FrontLimits(connections=config.max_connections),
            place.accept,
        )
        self._metrics = Metrics()
        self._health = PublishedHealth(self._metrics)
        self._adoption = Adoption(self._metrics)
        self._metrics.connections.set_function(lambda: self._front.connections)
        self._blocklist = (
            KeyBlocklist(config.key_blocklist_file, log) if config.key_blocklist_file else None
        )
        self._issuance_log = (
            issuance_log(
                config.issuance_log,
                lambda: served.signer if (served := self._adoption.served) else None,
                clock,
                log,
                self._metrics,
            )
            if config.issuance_log
            else None
        )
        self._cluster = _cluster(config)
        self._jwks = JwksFile(config.jwks_file, log) if config.jwks_file else None
        self._publisher = (
            RootPublisher(KubernetesRootCertificates(self._cluster), log)
            if config.publish_root_cert and self._cluster is not None
            else None
        )
        self._istiod_tls = (
            IstiodTls(
                KubernetesSecret(self._cluster, config.namespace, ISTIOD_TLS_SECRET, TLS_TYPE),
                config.istiod_names,
                self._adoption.serving,
                clock,
                log,
                ledger=self._issuance_log,
            )
            if config.issue_istiod_tls and self._cluster is not None
            else None
        )
        self._plug_in = plug_in_directory(config)
        self._csr_signer = csr_signer(
            config,
            self._cluster,
            self._adoption.serving,
            clock,
            log,
            self._metrics,
            ledger=self._issuance_log,
            blocked_keys=self._blocklist or frozenset(),
        )
        self._crl_publisher = (
            crl_publisher(KubernetesRootCertificates(self._cluster, *CRL), log)
            if config.crl and config.publish_root_cert and self._cluster is not None
            else None
        )
        self._remotes = remote_clusters(config, self._cluster, clock, self._metrics, log)
        self._ca = wire_ca(
            config,
            self._cluster,
            keys,
            self._adoption.adopt,
            self._adoption.serving,
            clock,
            log,
            self._metrics,
            lambda chain: self._revocations.unlisted(chain) if self._revocations else "",
        )
        self._revocations = wire_revocations(
            config,
            self._cluster,
            self._ca,
            self._adoption.serving,
            self._publish_crl,
            clock,
            log,
            self._metrics,
        )
        self._metrics.leader.set_function(self._ca.leads)

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until stopped, then drain."""
        if self._plug_in is not None:
            self._plug_in.prepare()
        await self._health.publish(serving=False)
        async with (
            self._place.answering(self._health.serving, self._metrics.exposition),
            self._log_running(),
            self._ca_api() as (server, listener),
            health_server(self._health.servicer, self._config.health_listen),
            metrics_endpoint(self._config.metrics_listen, self._exposition),
        ):
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._until(stop))
                    for work in self._work(listener):
                        tasks.create_task(work)
                    self._log.info(
                        "bridge.started",
                        mode=self._config.mode.value,
                        address=str(self._config.listen) if listener else "",
                    )
            except* _StopRequestedError:
                self._log.info("bridge.draining", connections=self._front.connections)
            finally:
                if listener is not None:
                    listener.close()
                await self._health.leave()
                if server is not None:
                    await self._front.leave(self._config.drain.total_seconds())
                    await server.stop(0)
                self._front.close()
                if self._plug_in is not None:
                    self._plug_in.close()
        self._log.info("bridge.stopped")

    async def _exposition(self) -> bytes:
        return self._metrics.exposition()

    async def _until(self, stop: asyncio.Event) -> None:
        """Return never: raise some time after the stop was asked for.

        Until everybody knows that this replica is not ready, new callers are sent here; they are
        served as before. Nobody is sent to one that never was ready, or has no port.
        """
        await stop.wait()
        await self._health.leave()
        delay = self._config.drain_delay.total_seconds()
        if self._config.mode.answers_agents and self._adoption.served is not None and delay:
            self._log.info("bridge.leaving", seconds=delay)
            await asyncio.sleep(delay)
        raise _StopRequestedError

    def _work(self, listener: socket.socket | None) -> Iterator[Coroutine[None, None, None]]:
        """Yield all that runs side by side until the process is stopped."""
        yield from (task() for task in self._ca.tasks)
        yield self._indirect_serving() if listener is None else self._tls_serving(listener)
        yield Readiness(
            self._adoption.serving,
            self._health.publish,
            self._clock,
            self._log,
            self._ca.conditions,
        ).watch()
        for file in (self._jwks, self._blocklist):
            if file is not None:
                yield file.watch()
        for part in (
            self._remotes,
            self._revocations,
            self._crl_publisher,
            self._publisher,
            self._istiod_tls,
            self._csr_signer,
        ):
            if part is not None:
                yield part.run()

    def _tls_serving(self, listener: socket.socket) -> Coroutine[None, None, None]:
        return TlsServing(
            self._adoption,
            self._front,
            self._config.server_names,
            self._write_roots,
            self._publish_roots,
            self._clock,
            self._log,
            self._metrics,
            ledger=self._issuance_log,
        ).run(listener)

    def _indirect_serving(self) -> Coroutine[None, None, None]:
        return IndirectServing(
            self._adoption,
            self._plug_in,
            self._write_roots,
            self._publish_roots,
            self._log,
            self._metrics,
        ).run()

    def _publish_roots(self, served: Authority) -> None:
        if self._publisher is not None:
            self._publisher.publish(served.roots_pem)

    async def _publish_crl(self, pem: str) -> None:
        path = self._config.crl_file
        if path is not None:
            await asyncio.to_thread(replace_file, path, pem.encode(), 0o444)
        if self._crl_publisher is not None:
            self._crl_publisher.publish(pem)

    async def _write_roots(self, adopted: Authority) -> None:
        path = self._config.root_cert_file
        if path is not None:
            await asyncio.to_thread(replace_file, path, adopted.roots_pem.encode(), 0o444)

    def _issuer(self) -> WorkloadIssuer:
        return WorkloadIssuer(
            self._config.ttl,
            self._adoption.serving,
            Admission(_SIGN_AT_ONCE, self._config.max_waiting, self._metrics),
            self._clock,
            ledger=self._issuance_log,
            blocked_keys=self._blocklist or frozenset(),
        )

    @contextlib.asynccontextmanager
    async def _log_running(self) -> AsyncIterator[None]:
        if self._issuance_log is None:
            yield
            return
        async with self._issuance_log.running():
            yield

    @contextlib.asynccontextmanager
    async def _ca_api(
        self,
    ) -> AsyncIterator[tuple[grpc.aio.Server, socket.socket] | tuple[None, None]]:
        """Have Istio's CA API ready, and an address for it, where agents come here."""
        if not self._config.mode.answers_agents:
            yield None, None
            return
        listener = self._place.listener()
        async with ca_server(self._service(), self._health.servicer, self._upstream) as server:
            yield server, listener

    def _service(self) -> CertificateService:
        config = self._config
        tokens = token_authenticator(config, self._jwks, self._cluster, self._clock, self._metrics)
        trust_domain = TrustDomain(config.trust_domain, config.trust_domain_aliases)
        if tokens is None:
            self._log.warning(
                "tokens.not_accepted", hint="set TOKEN_REVIEW=kubernetes or JWKS_FILE"
            )
        return CertificateService(
            ServiceSettings(
                trust_domain,
                config.cluster_id,
                in_flight=2 * config.max_waiting + _SIGN_AT_ONCE,
            ),
            self._issuer(),
            self._front.peer,
            tokens,
            self._clock,
            self._log,
            self._metrics,
            agents=NodeAgents(config.node_agents, KubernetesPods(self._cluster), trust_domain)
            if config.node_agents and self._cluster is not None
            else None,
            revoked=self._revocations or frozenset(),
            remote_tokens=self._remotes.tokens_of if self._remotes else lambda _: None,
        )


def _cluster(config: Config) -> Cluster | None:
    """Return the API server where anything is to be done with one."""
    if config.store_directory is None or config.review_tokens or config.csr is not None:
        return connect(config.kubeconfig)
    return None
