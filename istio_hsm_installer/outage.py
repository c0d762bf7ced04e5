"""How a drill makes a part fail, and lets it come back: each begins, and always ends."""

import os
import shlex
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from istio_hsm_installer import programs
from istio_hsm_installer.errors import InputError, InstallerError, ToolError
from istio_hsm_installer.interruption import by_sigterm_too
from istio_hsm_installer.kube import Cluster
from istio_hsm_installer.objects import Ref, name_of, section

_KINDS: Mapping[str, str] = {"deployment": "Deployment", "statefulset": "StatefulSet"}


class Outage(Protocol):
    """A fault of one part."""

    @property
    def what(self) -> str:
        """What is done, for the question before it."""

    def begin(self) -> None:
        """Make the part fail."""

    def end(self) -> None:
        """Let it come back; called once for each begin that may have done something."""


@contextmanager
def lasting(outage: Outage) -> Iterator[None]:
    """Begin the outage, and end it with the block; SIGTERM ends the block as Ctrl-C does."""
    with by_sigterm_too():
        try:
            outage.begin()
        except KeyboardInterrupt:  # it may have begun
            outage.end()
            raise
        try:
            yield
        finally:
            outage.end()


@dataclass(frozen=True, slots=True)
class DeletedPods:
    """Every pod of a selector is deleted; its Deployment makes new ones."""

    cluster: Cluster
    namespace: str
    selector: str

    @property
    def what(self) -> str:
        """Of the question."""
        return f"delete every pod with {self.selector} in {self.namespace}"

    def begin(self) -> None:
        """Delete them."""
        pods = self.cluster.list(Ref("Pod", "", self.namespace), self.selector)
        if not pods:
            raise InputError(
                f"there is no pod with {self.selector} in {self.namespace}",
                hint="correct --selector or --namespace",
            )
        for pod in pods:
            self.cluster.delete(Ref("Pod", name_of(pod), self.namespace))

    def end(self) -> None:
        """Nothing: the Deployment makes new ones."""


class ScaledToNone:
    """A Deployment or StatefulSet without replicas, and then with as many as before."""

    def __init__(self, cluster: Cluster, target: str) -> None:
        self._cluster = cluster
        namespace, _, rest = target.partition("/")
        kind, _, name = rest.partition("/")
        if kind not in _KINDS or not name or "/" in name:
            raise InputError(
                f"{target!r} names nothing that can be scaled",
                hint="write namespace/statefulset/name or namespace/deployment/name",
            )
        self._ref = Ref(_KINDS[kind], name, namespace, "apps/v1")
        self._replicas: object = None

    @property
    def what(self) -> str:
        """Of the question."""
        return f"scale {self._ref} to 0"

    def begin(self) -> None:
        """Remember its replicas, and take them away."""
        found = self._cluster.read(self._ref)
        if found is None:
            raise InputError(f"there is no {self._ref}", hint="correct --scale")
        self._replicas = section(found, "spec").get("replicas", 1)
        self._cluster.patch(self._ref, {"spec": {"replicas": 0}})

    def end(self) -> None:
        """Give them back, if they were looked at."""
        if self._replicas is None:
            return
        try:
            self._cluster.patch(self._ref, {"spec": {"replicas": self._replicas}})
        except InstallerError as error:
            raise ToolError(
                f"{self._ref} is still scaled to 0: {error}",
                hint=f"scale it to {self._replicas} by hand, now",
            ) from None


@dataclass(frozen=True, slots=True)
class FrozenProcess:
    """A process of this machine that hangs (SIGSTOP), and goes on."""

    pid: int

    @property
    def what(self) -> str:
        """Of the question."""
        return f"freeze process {self.pid}"

    def begin(self) -> None:
        """Freeze it."""
        _signal(self.pid, signal.SIGSTOP)

    def end(self) -> None:
        """Let it go on."""
        _signal(self.pid, signal.SIGCONT)


@dataclass(frozen=True, slots=True)
class Commands:
    """Programs of the operator's: one makes the fault, one mends it. No shell reads them."""

    begin_command: Sequence[str]
    end_command: Sequence[str]

    @property
    def what(self) -> str:
        """Of the question."""
        return f"run: {shlex.join(self.begin_command)}"

    def begin(self) -> None:
        """Run the first; were it to fail half-way, the second mends that."""
        try:
            _run(self.begin_command)
        except InstallerError:
            self.end()
            raise

    def end(self) -> None:
        """Run the second."""
        _run(self.end_command)


def _run(command: Sequence[str]) -> None:
    ended = programs.run(command)
    if ended.code:
        raise ToolError(
            f"{command[0]} failed: {ended.last_words}", hint=f"by hand: {shlex.join(command)}"
        )


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except OSError as error:
        raise InputError(
            f"process {pid} cannot be sent {number.name}: {error.strerror}",
            hint="correct --pid, or run as its user",
        ) from None
