"""Service istiod of the revision, which the validation webhook looks for."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from istio_hsm_installer.errors import RefusedError
from istio_hsm_installer.objects import Document, ref_of, section
from istio_hsm_installer.options import Options
from istio_hsm_installer.steps.kube_object import plan_object, undo_object
from istio_hsm_installer.steps.step import Area, Change, World

_PORTS = (
    {"port": 15010, "name": "grpc-xds", "protocol": "TCP"},
    {"port": 15012, "name": "https-dns", "protocol": "TCP"},
    {"port": 443, "name": "https-webhook", "targetPort": 15017, "protocol": "TCP"},
    {"port": 15014, "name": "http-monitoring", "protocol": "TCP"},
)


@dataclass(frozen=True, slots=True)
class IstiodService:
    """Applies the Service, unless it is another revision's."""

    options: Options
    name: str = "istiod-service"
    title: str = "Service of the revision, for the validation webhook"
    area: Area = Area.ISTIO
    hint: str = "see the Service istiod in the control plane's namespace"

    def check(self, world: World) -> None:
        """Nothing is brought for it."""

    def plan(self, world: World) -> Sequence[Change]:
        """Return what a server-side dry run would change."""
        self._check_ours(world)
        return plan_object(world, self._document)

    def apply(self, world: World) -> None:
        """Apply it."""
        self._check_ours(world)
        world.kube.apply(self._document)

    def undo(self, world: World, created: Collection[str]) -> Sequence[str]:
        """Delete it if it was created here."""
        return undo_object(world, self._document, created)

    def _check_ours(self, world: World) -> None:
        found = world.kube.read(ref_of(self._document))
        revision = section(found, "metadata", "labels").get("istio.io/rev")
        if found is not None and revision != self.options.istio.revision:
            raise RefusedError(
                f"Service istiod belongs to the revision {revision or 'default'}, "
                "whose proxies would be cut off",
                hint="migrate and uninstall that revision first, or install this one as it",
            )

    @property
    def _document(self) -> Document:
        labels = {"istio.io/rev": self.options.istio.revision, "app": "istiod"}
        return {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "name": "istiod",
                "namespace": self.options.istio.namespace,
                "labels": {**labels, "istio": "pilot", "release": "istio"},
            },
            "spec": {"ports": list(_PORTS), "selector": labels},
        }
