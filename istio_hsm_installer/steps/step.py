"""What a step of the guide is, and what it works on."""

from collections.abc import Callable, Collection, MutableMapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from istio_hsm_installer.config import Secret
from istio_hsm_installer.kube import Cluster
from istio_hsm_installer.options import Options
from istio_hsm_installer.programs import Plugin
from istio_hsm_installer.vault import Vault


class Area(StrEnum):
    """Who is needed to do it, so that their parts can be done apart."""

    HSM = "hsm"
    KUBERNETES = "kubernetes"
    VAULT = "vault"
    ISTIO = "istio"


class Action(StrEnum):
    """What a change does."""

    CREATE = "create"
    UPDATE = "update"
    RUN = "run"


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that `apply` would do. No secret is in it."""

    action: Action
    what: str
    """Names the thing; what was created is undone by this name."""

    diff: tuple[str, ...] = ()
    note: str = ""


@dataclass(slots=True)
class World:
    """Everything that steps read and change; what is not needed is not connected to."""

    options: Options
    connect_kube: Callable[[], Cluster]
    connect_vault: Callable[[], Vault]
    plugin: Plugin
    ask_pin: Callable[[], Secret]
    istioctl_flags: tuple[str, ...] = ()
    """Which cluster istioctl is to use, as it was said to us."""

    facts: MutableMapping[str, str] = field(default_factory=dict)
    """What the state file remembers beside the steps; never a secret."""

    _kube: Cluster | None = None
    _vault: Vault | None = None

    @property
    def kube(self) -> Cluster:
        """The cluster."""
        if self._kube is None:
            self._kube = self.connect_kube()
        return self._kube

    @property
    def vault(self) -> Vault:
        """Vault, as its operator."""
        if self._vault is None:
            self._vault = self.connect_vault()
        return self._vault


class Step(Protocol):
    """One step of the guide, idempotent: after `apply`, `plan` finds nothing to do."""

    @property
    def name(self) -> str:
        """A short name, the same for ever: the state file has it."""

    @property
    def title(self) -> str:
        """What it is for, in a line."""

    @property
    def area(self) -> Area:
        """Who is needed."""

    @property
    def hint(self) -> str:
        """What to do when it fails without a hint of its own."""

    def check(self, world: World) -> None:
        """Return when what the operator must bring is there and sound. Changes nothing."""

    def plan(self, world: World) -> Sequence[Change]:
        """Return what `apply` would do now. Changes nothing."""

    def apply(self, world: World) -> None:
        """Do it; doing it again, or after a crash in the middle, leads to the same end."""

    def undo(self, world: World, created: Collection[str]) -> Sequence[str]:
        """Take away what was created, and return what is kept and why."""
