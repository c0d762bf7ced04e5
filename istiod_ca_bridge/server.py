"""The process: lifecycle, TLS front, gRPC server, health, and an orderly end."""

import asyncio
import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from istio_hsm_proto.istio_ca_pb2_grpc import add_IstioCertificateServiceServicer_to_server
from istiod_ca_bridge.authority import Authority
from istiod_ca_bridge.ca_service import CertificateService, ServiceSettings
from istiod_ca_bridge.ca_wiring import wire_ca
from istiod_ca_bridge.config import Address, Config
from istiod_ca_bridge.errors import BridgeError
from istiod_ca_bridge.files import replace_file
from istiod_ca_bridge.hsm_key import HsmPlugin
from istiod_ca_bridge.istiod_tls import ISTIOD_TLS_SECRET, IstiodTls
from istiod_ca_bridge.jwks_file import JwksFile
from istiod_ca_bridge.kube_client import Cluster, connect
from istiod_ca_bridge.kube_root_cert import KubernetesRootCertificates
from istiod_ca_bridge.kube_secret import KubernetesTlsSecret
from istiod_ca_bridge.log import EventLog
from istiod_ca_bridge.readiness import Readiness
from istiod_ca_bridge.root_publisher import RootPublisher
from istiod_ca_bridge.server_certificate import ServerCertificate, make_server_certificate
from istiod_ca_bridge.tls_front import FrontLimits, TlsFront, bind
from istiod_ca_bridge.tokens import token_authenticator

_MEMORY = Path("/dev/shm")  # noqa: S108 - a fresh 0700 folder is made in it
_RETRY_SECONDS = 2.0
_LONGEST_WAIT_SECONDS = 60.0
"""The clock is looked at this often, for it may jump."""

CA_SERVICE = "istio.v1.auth.IstioCertificateService"
_OPTIONS = [
    ("grpc.max_receive_message_length", 64 << 10),
    ("grpc.max_metadata_size", 32 << 10),
    ("grpc.max_concurrent_streams", 256),
    ("grpc.max_connection_idle_ms", 10 * 60 * 1000),
    ("grpc.max_connection_age_ms", 60 * 60 * 1000),
    ("grpc.max_connection_age_grace_ms", 30 * 1000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10 * 1000),
    ("grpc.so_reuseport", 0),
]


async def serve(
    config: Config, clock: Callable[[], datetime], log: EventLog, stop: asyncio.Event
) -> None:
    """Serve until `stop` is set, then drain; raises a BridgeError when only a person can help."""
    with _private_folder() as folder:
        async with HsmPlugin(config.plugin_socket) as keys:
            await _Process(config, clock, log, keys, folder).run(stop)


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
    ) -> None:
        self._config = config
        self._clock = clock
        self._log = log
        self._authority: Authority | None = None
        self._served: Authority | None = None
        self._changed = asyncio.Event()
        self._health = health.aio.HealthServicer()
        self._upstream = folder / "grpc"
        self._front = TlsFront(
            self._upstream, folder, log, FrontLimits(connections=config.max_connections)
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
                KubernetesTlsSecret(self._cluster, config.namespace, ISTIOD_TLS_SECRET),
                config.istiod_names,
                lambda: self._served,
                clock,
                log,
            )
            if config.issue_istiod_tls and self._cluster is not None
            else None
        )
        self._ca = wire_ca(
            config, self._cluster, keys, self._adopt, lambda: self._served, clock, log
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until stopped, then drain."""
        listener = bind(self._config.listen.host, self._config.listen.port)
        await self._publish(serving=False)
        async with self._server() as server, self._health_server():
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(_until(stop))
                    for task in self._ca.tasks:
                        tasks.create_task(task())
                    tasks.create_task(self._serve_tls(listener))
                    tasks.create_task(
                        Readiness(
                            lambda: self._served,
                            self._publish,
                            self._clock,
                            self._log,
                            self._ca.conditions,
                        ).watch()
                    )
                    if self._jwks is not None:
                        tasks.create_task(self._jwks.watch())
                    if self._publisher is not None:
                        tasks.create_task(self._publisher.run())
                    if self._istiod_tls is not None:
                        tasks.create_task(self._istiod_tls.run())
                    self._log.info("bridge.started", address=str(self._config.listen))
            except* _StopRequestedError:
                self._log.info("bridge.draining", connections=self._front.connections)
            finally:
                listener.close()
                await self._publish(serving=False)
                await server.stop(self._config.drain.total_seconds())
                self._front.close()
        self._log.info("bridge.stopped")

    def _adopt(self, authority: Authority) -> None:
        self._authority = authority
        self._changed.set()

    async def _serve_tls(self, listener: socket.socket) -> None:
        """Have a server certificate first, then listen, and renew for ever."""
        certificate = await self._next_certificate(None)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._front.serve(listener))
            address = Address(*listener.getsockname()[:2])
            self._log.info("ca_server.listening", address=str(address))
            while True:
                certificate = await self._next_certificate(certificate)

    async def _next_certificate(self, now_served: ServerCertificate | None) -> ServerCertificate:
        """Wait until another certificate is due, and serve with it."""
        await self._due(now_served)
        while True:
            authority = self._authority
            assert authority is not None  # noqa: S101 - _due waits for it
            self._changed.clear()
            try:
                certificate = await make_server_certificate(
                    authority, self._config.server_names, self._clock()
                )
                await self._write_roots(authority)
            except (BridgeError, OSError) as error:
                self._log.warning("server_certificate.delayed", reason=str(error))
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            before = self._served.chain.roots if self._served else ()
            self._front.use(
                certificate.context, recheck_clients=not set(before) <= set(authority.chain.roots)
            )
            self._served = authority
            if self._publisher is not None:
                self._publisher.publish(authority.roots_pem)
            self._log.info(
                "server_certificate.renewed",
                names=",".join(self._config.server_names),
                not_after=certificate.not_after,
            )
            return certificate

    async def _due(self, served: ServerCertificate | None) -> None:
        """Return when there is a new authority, or half of the certificate's life is over."""
        while not self._changed.is_set():
            left = timedelta(days=1) if served is None else served.renew_at - self._clock()
            if left <= timedelta(0):
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(
                    self._changed.wait(), min(left.total_seconds(), _LONGEST_WAIT_SECONDS)
                )

    async def _write_roots(self, authority: Authority) -> None:
        path = self._config.root_cert_file
        if path is not None:
            await asyncio.to_thread(replace_file, path, authority.roots_pem.encode(), 0o444)

    async def _publish(self, serving: bool) -> None:  # noqa: FBT001 - the callback's one fact
        status = (
            health_pb2.HealthCheckResponse.SERVING
            if serving
            else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        for service in ("", CA_SERVICE):
            await self._health.set(service, status)

    @contextlib.asynccontextmanager
    async def _server(self) -> AsyncIterator[grpc.aio.Server]:
        config = self._config
        tokens = token_authenticator(config, self._jwks, self._cluster, self._clock)
        if tokens is None:
            self._log.warning(
                "tokens.not_accepted", hint="set TOKEN_REVIEW=kubernetes or JWKS_FILE"
            )
        server = grpc.aio.server(options=_OPTIONS)
        add_IstioCertificateServiceServicer_to_server(
            CertificateService(
                ServiceSettings(config.trust_domain, config.cluster_id, config.ttl),
                lambda: self._served,
                self._front.peer,
                tokens,
                self._clock,
                self._log,
            ),
            server,
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        server.add_insecure_port(f"unix:{self._upstream}")
        await server.start()
        try:
            yield server
        finally:
            await server.stop(0)

    @contextlib.asynccontextmanager
    async def _health_server(self) -> AsyncIterator[None]:
        """Serve health in the clear, from the first moment on, where the operator wants it."""
        if self._config.health_listen is None:
            yield
            return
        server = grpc.aio.server(options=_OPTIONS)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        try:
            server.add_insecure_port(str(self._config.health_listen))
        except RuntimeError as error:
            raise BridgeError(
                f"cannot listen on {self._config.health_listen}", hint="look at HEALTH_LISTEN"
            ) from error
        await server.start()
        try:
            yield
        finally:
            await server.stop(0)


async def _until(stop: asyncio.Event) -> None:
    await stop.wait()
    raise _StopRequestedError


def _cluster(config: Config) -> Cluster | None:
    """Return the API server where anything is to be done with one."""
    if config.store_directory is None or config.review_tokens:
        return connect(config.kubeconfig)
    return None


@contextlib.contextmanager
def _private_folder() -> Iterator[Path]:
    """Make a folder that only this user may enter, in memory where the host has that."""
    parent = _MEMORY if os.access(_MEMORY, os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="istiod-ca-bridge-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
