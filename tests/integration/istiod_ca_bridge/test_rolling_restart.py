"""Two replicas restarted one after the other behind a Service, under load: no call fails."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from istio_hsm_proto import istio_ca_pb2 as ca
from istio_hsm_proto.istio_ca_pb2_grpc import IstioCertificateServiceStub
from tests.integration.istiod_ca_bridge import harness
from tests.integration.istiod_ca_bridge.conftest import Mesh, token_settings
from tests.support import plugin
from tests.support.ports import free_port

_LAG_SECONDS = 0.5
"""How long a replica that is not ready any more is still sent new connections."""

_CHUNK = 64 << 10


class Service:
    """Sends each new connection to a replica that was ready a moment ago, as kube-proxy does."""

    def __init__(self, replicas: list[harness.Bridge]) -> None:
        self.replicas = replicas
        self.port = free_port()
        self._ready: dict[str, float] = {}
        self._turn = 0
        self._over = threading.Event()
        self._threads = [threading.Thread(target=it) for it in (self._probe, self._run)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def ready(self) -> list[str]:
        since = time.monotonic() - _LAG_SECONDS
        return sorted(address for address, seen in self._ready.items() if seen >= since)

    def _probe(self) -> None:
        while not self._over.wait(0.05):
            for bridge in tuple(self.replicas):
                if bridge.health() == plugin.SERVING:
                    self._ready[bridge.address] = time.monotonic()

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        async with await asyncio.start_server(self._connect, "127.0.0.1", self.port):
            await asyncio.to_thread(self._over.wait)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ready = self.ready()
        with contextlib.suppress(OSError, IndexError, asyncio.CancelledError):
            self._turn += 1
            host, _, port = ready[self._turn % max(len(ready), 1)].rpartition(":")
            there, back = await asyncio.open_connection(host, int(port))
            await asyncio.gather(self._copy(reader, back), self._copy(there, writer))
        writer.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                writer.write(data)
                await writer.drain()
        writer.close()


@dataclass(slots=True)
class Load:
    """Agents that ask all the time, some on a connection that they keep, some on new ones."""

    service: Service
    roots: bytes = field(repr=False)
    token: str = field(repr=False)
    issued: int = 0
    failed: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def running(self) -> Iterator[None]:
        agents = [threading.Thread(target=self._ask, args=(keeps,)) for keeps in (1, 1, 1, 0, 0)]
        for agent in agents:
            agent.start()
        try:
            yield
        finally:
            self.over.set()
            for agent in agents:
                agent.join()

    def _ask(self, keeps: int) -> None:
        csr = harness.csr_of(ec.generate_private_key(ec.SECP256R1()))
        while not self.over.is_set():
            with self._channel() as channel:
                stub = IstioCertificateServiceStub(channel)
                while not self.over.wait(0.02):
                    self._once(stub, csr)
                    if not keeps:
                        break

    def _once(self, stub: IstioCertificateServiceStub, csr: str) -> None:
        metadata = (("authorization", f"Bearer {self.token}"), ("clusterid", "Kubernetes"))
        try:
            stub.CreateCertificate(
                ca.IstioCertificateRequest(csr=csr), metadata=metadata, timeout=20
            )
            self.issued += 1
        except grpc.RpcError as error:
            self.failed.append(f"{error.code()}: {error.details()}")

    def _channel(self) -> grpc.Channel:
        return grpc.secure_channel(
            f"127.0.0.1:{self.service.port}",
            grpc.ssl_channel_credentials(self.roots),
            (
                ("grpc.ssl_target_name_override", "istiod.istio-system.svc"),
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.enable_http_proxy", 0),
            ),
        )


def restarted(bridge: harness.Bridge, hsm: plugin.Plugin) -> harness.Bridge:
    """Return the replica that comes instead, once it serves; the old one ended in order."""
    assert bridge.stop() == 0
    after = harness.start_bridge(bridge.folder, hsm.socket, bridge.environment)
    after.await_serving()
    return after


def kill(replicas: list[harness.Bridge]) -> None:
    for bridge in replicas:
        bridge.kill()


def rolled_out(mesh: Mesh, folder: Path, delay: str, workers: int = 1) -> Load:
    """Return what two replicas' clients saw of a rolling restart."""
    tokens = harness.token_issuer()
    store = folder / "store"
    store.mkdir(mode=0o700)
    settings = token_settings(folder, tokens) | {
        "BRIDGE_STORE_DIR": str(store),
        "CA_KEY_ALGORITHM": "ecdsa-p256",
        "DRAIN_DELAY": delay,
        "CA_WORKERS": str(workers),
        "DRAIN_DURATION": "10s",
    }
    replicas: list[harness.Bridge] = []
    with ExitStack() as ending:
        ending.callback(lambda: kill(replicas))
        for name in ("a", "b"):
            own = folder / name
            own.mkdir()
            bridge = harness.start_bridge(own, mesh.plugin.socket, settings)
            replicas.append(bridge)
            if name == "a":
                (own / "secrets").rmdir()
                (own / "secrets").symlink_to(store)
                harness.bring_to_serving(bridge, mesh.plugin, mesh.root)
            bridge.await_serving()
        service = ending.enter_context(Service(replicas))
        bridge.wait_until(lambda: len(service.ready()) == 2, "two that are ready")
        load = Load(service, bridge.root_file.read_bytes(), tokens.token())
        with load.running():
            for at in (0, 1):
                replicas[at] = restarted(replicas[at], mesh.plugin)
                replicas[at].wait_until(lambda: len(service.ready()) == 2, "two that are ready")
        return load


@pytest.mark.parametrize("workers", [1, 2])
def test_in_a_rolling_restart_no_call_fails_on_a_kept_connection_or_a_new_one(
    mesh: Mesh, tmp_path: Path, workers: int
) -> None:
    load = rolled_out(mesh, tmp_path, delay="2s", workers=workers)

    assert load.failed == []
    assert load.issued > 50


def test_without_the_delay_those_fail_that_are_sent_to_a_replica_that_ended(
    mesh: Mesh, tmp_path: Path
) -> None:
    load = rolled_out(mesh, tmp_path, delay="0s")

    assert load.failed
    assert all("UNAVAILABLE" in failure for failure in load.failed)
