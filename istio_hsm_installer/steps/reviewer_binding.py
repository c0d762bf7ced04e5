"""ClusterRoleBinding role-tokenreview-binding: the reviewer may review tokens."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from istio_hsm_installer.objects import MANAGED_BY, Document, Ref, entries
from istio_hsm_installer.options import Options
from istio_hsm_installer.steps.kube_object import plan_object
from istio_hsm_installer.steps.step import Area, Change, World

_RBAC = "rbac.authorization.k8s.io"
_REF = Ref("ClusterRoleBinding", "role-tokenreview-binding", None, f"{_RBAC}/v1")


@dataclass(frozen=True, slots=True)
class ReviewerBinding:
    """Binds the reviewer to system:auth-delegator beside whoever is bound already."""

    options: Options
    name: str = "reviewer-binding"
    title: str = "right to review tokens"
    area: Area = Area.KUBERNETES
    hint: str = "granting system:auth-delegator needs the rights of a cluster administrator"

    def check(self, world: World) -> None:
        """Nothing is brought for it."""

    def plan(self, world: World) -> Sequence[Change]:
        """Return what would change; other subjects of the binding stay."""
        return plan_object(world, self._document(self._others(world)))

    def apply(self, world: World) -> None:
        """Add the reviewer to the binding."""
        world.kube.apply(self._document(self._others(world)))

    def undo(self, world: World, created: Collection[str]) -> Sequence[str]:
        """Delete the binding if it was created here and serves nobody else."""
        if world.kube.read(_REF) is None:
            return []
        others = self._others(world)
        if str(_REF) not in created:
            return [f"{_REF} was there before"]
        if others:
            world.kube.apply(self._document(others, with_ours=False))
            return [f"{_REF} serves others, and only our subject left it"]
        world.kube.delete(_REF)
        return []

    def _others(self, world: World) -> Sequence[Document]:
        bound = entries(world.kube.read(_REF), "subjects")
        return [subject for subject in bound if not self._is_ours(subject)]

    def _is_ours(self, subject: Document) -> bool:
        ours = self._subject
        return all(subject.get(key) == ours[key] for key in ("kind", "name", "namespace"))

    @property
    def _subject(self) -> Document:
        vault = self.options.vault
        return {
            "kind": "ServiceAccount",
            "name": vault.reviewer_service_account,
            "namespace": vault.reviewer_namespace,
        }

    def _document(self, others: Sequence[Document], *, with_ours: bool = True) -> Document:
        return {
            "apiVersion": _REF.api,
            "kind": _REF.kind,
            "metadata": {"name": _REF.name, "labels": MANAGED_BY},
            "roleRef": {
                "apiGroup": _RBAC,
                "kind": "ClusterRole",
                "name": "system:auth-delegator",
            },
            "subjects": [*others, *([self._subject] if with_ours else [])],
        }
