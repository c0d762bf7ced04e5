"""What goes on by itself where workloads run: agents renew, a kubelet mounts, clients call."""

import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from kubernetes import client as kubernetes

from tests.e2e.envoy.sidecars import Agent
from tests.support.envoy import Envoy, peer_seen

_BETWEEN_RENEWALS = 0.3
_BETWEEN_CONNECTIONS = 0.005
_GONE = 404


@dataclass(slots=True)
class Node:
    """Sidecars of one namespace, and all that is counted about them."""

    core: kubernetes.CoreV1Api
    namespace: str
    crl: Path
    agents: list[Agent] = field(default_factory=list)
    seen: Counter[str | None] = field(default_factory=Counter)
    """How many connections there were, by whom the server saw; None: refused."""

    troubles: list[Exception] = field(default_factory=list)
    renewals: int = 0
    mounted: str = ""
    _over: threading.Event = field(default_factory=threading.Event)

    def mount(self) -> int:
        """Have the ConfigMap's revocation lists in the file, as a kubelet swaps it; how many."""
        try:
            found = self.core.read_namespaced_config_map("istio-ca-crl", self.namespace)
        except kubernetes.ApiException as error:
            if error.status == _GONE:
                return 0
            raise
        text = (found.data or {})["ca-crl.pem"]
        if text != self.mounted:
            folder = self.crl.parent
            version = Path(tempfile.mkdtemp(prefix="..", dir=folder))
            (version / self.crl.name).write_text(text)
            swap = folder / "..data_tmp"
            swap.symlink_to(version.name)
            swap.rename(folder / "..data")
            if not self.crl.is_symlink():
                self.crl.symlink_to(Path("..data") / self.crl.name)
            self.mounted = text
        return self.lists

    @property
    def lists(self) -> int:
        """How many lists are mounted."""
        return self.mounted.count("BEGIN X509 CRL")

    @contextmanager
    def at_work(self, client: Envoy) -> Iterator[None]:
        """Renew one agent after the other, and open new connections, until the end."""

        def call() -> None:
            self.seen.update([peer_seen(client)])

        jobs = [
            threading.Thread(target=self._repeat, args=(self._renew, _BETWEEN_RENEWALS)),
            threading.Thread(target=self._repeat, args=(call, _BETWEEN_CONNECTIONS)),
        ]
        for job in jobs:
            job.start()
        try:
            yield
        finally:
            self._over.set()
            for job in jobs:
                job.join()

    def _renew(self) -> None:
        self.mount()
        for it in self.agents:
            it.renew()
            time.sleep(_BETWEEN_RENEWALS)  # the others go on with what was before
        self.renewals += 1

    def _repeat(self, job: Callable[[], None], pause: float) -> None:
        while not self._over.wait(pause):
            try:
                job()
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:  # agents come again
                    self.troubles.append(error)
            except Exception as error:  # noqa: BLE001 - the test tells it at the end
                self.troubles.append(error)
