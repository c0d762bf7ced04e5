"""A namespace: the one of Vault's reviewer, and istio-system."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from istio_hsm_installer.objects import MANAGED_BY, Document, Ref, section
from istio_hsm_installer.steps.kube_object import plan_object
from istio_hsm_installer.steps.step import Area, Change, World
from istio_hsm_installer.waiting import wait_until

_LOOKED_FOR = {
    "Secret": "v1",
    "ConfigMap": "v1",
    "ServiceAccount": "v1",
    "Service": "v1",
    "Pod": "v1",
    "Deployment": "apps/v1",
}
_BY_KUBERNETES = frozenset(
    {"ServiceAccount default", "ConfigMap kube-root-ca.crt", "ConfigMap istio-ca-root-cert"}
)


@dataclass(frozen=True, slots=True)
class NamespaceStep:
    """Creates a namespace; takes it away only when nobody else has put anything into it."""

    name: str
    title: str
    namespace: str
    area: Area = Area.KUBERNETES
    hint: str = "ask for the right to create namespaces, or have it created for you"

    def check(self, world: World) -> None:
        """Nothing is brought for it."""

    def plan(self, world: World) -> Sequence[Change]:
        """Return its creation when it does not exist; an existing one is left as it is."""
        if world.kube.read(self._ref) is not None:
            return []
        return plan_object(world, self._document)

    def apply(self, world: World) -> None:
        """Create it."""
        if world.kube.read(self._ref) is None:
            world.kube.apply(self._document)

    def undo(self, world: World, created: Collection[str]) -> Sequence[str]:
        """Delete it if it was created here and is empty, and wait until it is gone."""
        if world.kube.read(self._ref) is None:
            return []
        if str(self._ref) not in created:
            return [f"{self._ref} was there before"]
        if others := self._contents(world):
            return [f"{self._ref} still holds {', '.join(others)}"]
        world.kube.delete(self._ref)
        wait_until(
            f"namespace {self.namespace} is gone", lambda: world.kube.read(self._ref) is None
        )
        return []

    def _contents(self, world: World) -> Sequence[str]:
        found = [
            f"{kind} {section(entry, 'metadata').get('name')}"
            for kind, api in _LOOKED_FOR.items()
            for entry in world.kube.list(Ref(kind, "", self.namespace, api))
        ]
        return [entry for entry in found if entry not in _BY_KUBERNETES]

    @property
    def _ref(self) -> Ref:
        return Ref("Namespace", self.namespace)

    @property
    def _document(self) -> Document:
        return {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": self.namespace, "labels": MANAGED_BY},
        }
