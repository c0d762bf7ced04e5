"""The downloaded release: nothing is changed anywhere unless its signature holds."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from istio_hsm_installer import release
from istio_hsm_installer.files import read_file
from istio_hsm_installer.options import ReleaseOptions
from istio_hsm_installer.steps.step import Area, Change, World


@dataclass(frozen=True, slots=True)
class ReleaseSignature:
    """Verifies, and has nothing to apply or to undo."""

    release: ReleaseOptions
    name: str = "release-signature"
    title: str = "signature of the downloaded release"
    area: Area = Area.ISTIO
    hint: str = "check release.archive, release.signature and release.publicKeyFile"

    def check(self, world: World) -> None:
        """Verify the archive's signature."""
        del world
        key_file = self.release.public_key_file
        key = release.load_key(read_file(key_file) if key_file else release.GUIDE_KEY)
        if self.release.archive and self.release.signature:
            release.verify(self.release.archive, self.release.signature, key)

    def plan(self, world: World) -> Sequence[Change]:
        """Verify again: plan runs without check."""
        self.check(world)
        return []

    def apply(self, world: World) -> None:
        """Nothing to do."""

    def undo(self, world: World, created: Collection[str]) -> Sequence[str]:
        """Nothing to undo."""
        del world, created
        return []
