"""The ServiceAccount that Vault reviews tokens with; Kubernetes itself makes `default`."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from istio_hsm_installer.objects import MANAGED_BY, Document, Ref
from istio_hsm_installer.options import Options
from istio_hsm_installer.steps.kube_object import plan_object, undo_object
from istio_hsm_installer.steps.step import Area, Change, World
from istio_hsm_installer.waiting import wait_until


@dataclass(frozen=True, slots=True)
class ReviewerAccount:
    """Waits for the account `default`, or creates another."""

    options: Options
    name: str = "reviewer-account"
    title: str = "ServiceAccount that Vault reviews tokens with"
    area: Area = Area.KUBERNETES
    hint: str = "check that kube-controller-manager runs: it makes the account default"

    def check(self, world: World) -> None:
        """Nothing is brought for it."""

    def plan(self, world: World) -> Sequence[Change]:
        """Return its creation when it does not exist."""
        return [] if self._exists(world) else plan_object(world, self._document)

    def apply(self, world: World) -> None:
        """Create it, or wait for Kubernetes to do so."""
        if self._is_default:
            wait_until(f"{self._ref} exists", lambda: self._exists(world), hint=self.hint)
        elif not self._exists(world):
            world.kube.apply(self._document)

    def undo(self, world: World, created: Collection[str]) -> Sequence[str]:
        """Delete it if it was created here; `default` lives and dies with its namespace."""
        return [] if self._is_default else undo_object(world, self._document, created)

    def _exists(self, world: World) -> bool:
        return world.kube.read(self._ref) is not None

    @property
    def _is_default(self) -> bool:
        return self._ref.name == "default"

    @property
    def _ref(self) -> Ref:
        vault = self.options.vault
        return Ref("ServiceAccount", vault.reviewer_service_account, vault.reviewer_namespace)

    @property
    def _document(self) -> Document:
        return {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {
                "name": self._ref.name,
                "namespace": self._ref.namespace,
                "labels": MANAGED_BY,
            },
        }
