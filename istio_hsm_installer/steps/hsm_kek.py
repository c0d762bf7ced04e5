"""The key encryption key in the HSM."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from istio_hsm_installer.options import HsmOptions
from istio_hsm_installer.steps.step import Action, Area, Change, World


@dataclass(frozen=True, slots=True)
class HsmKek:
    """Generates the KEK, once; it is never destroyed from here."""

    hsm: HsmOptions
    name: str = "hsm-kek"
    title: str = "key encryption key in the HSM"
    area: Area = Area.HSM
    hint: str = "run `hsm-plugin serve` on this machine, and set hsm.socket"

    def check(self, world: World) -> None:
        """Nothing is brought for it."""

    def plan(self, world: World) -> Sequence[Change]:
        """Return its generation when a round trip with it is not possible."""
        return [] if world.plugin.has_kek(self.hsm.kek_id) else [Change(Action.CREATE, self._what)]

    def apply(self, world: World) -> None:
        """Generate it; it was looked for just before, and is never doubled."""
        world.plugin.generate_kek(self.hsm.kek_id)

    def undo(self, world: World, created: Collection[str]) -> Sequence[str]:
        """Keep it: what it sealed would be lost for ever."""
        del world
        return [f"{self._what} stays: it may have sealed a CA key"] if created else []

    @property
    def _what(self) -> str:
        return f"KEK {self.hsm.kek_id}"
