"""What a running CA left in the cluster; only `uninstall` takes it away."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes

from istio_hsm_installer.certificates import fingerprints
from istio_hsm_installer.installation import KEY_SECRET, STATUS_MAP, TLS_SECRET, Installation
from istio_hsm_installer.objects import Ref, name_of
from istio_hsm_installer.options import Options
from istio_hsm_installer.secret_dir import CHAIN_SECRET, CSR_SECRET
from istio_hsm_installer.steps.step import Area, Change, World
from istio_hsm_installer.waiting import wait_until

_ROOTS = "istio-ca-root-cert"


@dataclass(frozen=True, slots=True)
class Leftovers:
    """Has nothing to apply; it is undone after Istio and before its namespace."""

    options: Options
    with_key: bool
    """Also take away the Secret that says where the CA key is, or that has it sealed."""

    name: str = "mesh-leftovers"
    title: str = "what the mesh's CA left in the cluster"
    area: Area = Area.ISTIO
    hint: str = "delete it by hand, and start again"

    def check(self, world: World) -> None:
        """Nothing is brought for it."""

    def plan(self, world: World) -> Sequence[Change]:
        """Nothing is planned: it comes into being by itself."""
        del world
        return []

    def apply(self, world: World) -> None:
        """Nothing to do."""

    def undo(self, world: World, created: Collection[str]) -> Sequence[str]:
        """Delete it all, and return what stays and why."""
        del created
        seen = Installation(self.options, world.kube)
        namespace = self.options.istio.namespace
        others = [
            name_of(entry)
            for entry in world.kube.list(Ref("Deployment", "", namespace, "apps/v1"), "app=istiod")
            if name_of(entry) != self.options.istiod_name
        ]
        if others:
            return [f"everything of the CA stays: {', '.join(others)} uses it"]
        for ref in self._published(seen):
            world.kube.delete(ref)
        names = [CSR_SECRET, CHAIN_SECRET, TLS_SECRET, *([KEY_SECRET] if self.with_key else [])]
        refs = [Ref("Secret", name, namespace) for name in names]
        refs.append(Ref("ConfigMap", STATUS_MAP, namespace))
        for ref in refs:
            world.kube.delete(ref)
        wait_until(
            f"{', '.join(map(str, refs))} are gone",
            lambda: all(world.kube.read(ref) is None for ref in refs),
        )
        key = Ref("Secret", KEY_SECRET, namespace)
        if world.kube.read(key) is not None:
            return [f"{key} stays: without it the CA key is lost; --with-ca-key takes it away"]
        return []

    def _published(self, seen: Installation) -> Sequence[Ref]:
        """Return each istio-ca-root-cert that holds the root of our chain."""
        chain = seen.chain()
        if not chain:
            return []
        root = chain[-1].fingerprint(hashes.SHA256())
        return [
            Ref("ConfigMap", _ROOTS, namespace)
            for namespace, pem in seen.published_roots()
            if root in fingerprints(pem.encode())
        ]
