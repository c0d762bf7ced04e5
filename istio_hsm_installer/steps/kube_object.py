"""The shape of the steps that apply one Kubernetes object."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from istio_hsm_installer.objects import Document, difference, ref_of
from istio_hsm_installer.options import Options
from istio_hsm_installer.steps.step import Action, Area, Change, World
from istio_hsm_installer.waiting import wait_until


@dataclass(frozen=True, slots=True)
class KubeObject:
    """Applies one object, made from the options and the files that they name."""

    name: str
    title: str
    hint: str
    make: Callable[[Options], Document]
    options: Options
    area: Area = Area.KUBERNETES

    def check(self, world: World) -> None:
        """Make the object, so that a missing file is told early."""
        del world
        self.make(self.options)

    def plan(self, world: World) -> Sequence[Change]:
        """Return the difference that a server-side dry run would make."""
        return plan_object(world, self.make(self.options))

    def apply(self, world: World) -> None:
        """Apply the object on the server's side."""
        world.kube.apply(self.make(self.options))

    def undo(self, world: World, created: Collection[str]) -> Sequence[str]:
        """Delete the object if it was created here."""
        return undo_object(world, self.make(self.options), created)


def plan_object(world: World, document: Document) -> Sequence[Change]:
    """Return the one change that applying the document would make, or none."""
    ref = ref_of(document)
    before = world.kube.read(ref)
    after = world.kube.preview(document)
    if after is None:
        note = (
            f"its namespace {ref.namespace} is not there yet, so the API server has not judged it"
        )
        return [Change(Action.CREATE, str(ref), tuple(difference(None, document)), note)]
    changed = tuple(difference(before, after))
    if before is not None and not changed:
        return []
    action = Action.CREATE if before is None else Action.UPDATE
    return [Change(action, str(ref), changed)]


def undo_object(world: World, document: Document, created: Collection[str]) -> Sequence[str]:
    """Delete the object if its name is among what was created, and wait until it is gone."""
    ref = ref_of(document)
    if str(ref) in created:
        world.kube.delete(ref)
        wait_until(f"{ref} is gone", lambda: world.kube.read(ref) is None)
        return []
    return [f"{ref} was there before"] if world.kube.read(ref) is not None else []
