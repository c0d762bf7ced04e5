"""The Kubernetes auth method of this cluster, mounted at the guide's path."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from istio_hsm_installer.errors import RefusedError
from istio_hsm_installer.options import Options
from istio_hsm_installer.steps.step import Action, Area, Change, World


@dataclass(frozen=True, slots=True)
class AuthMount:
    """Mounts the auth method; unmounting it takes its configuration and roles along."""

    options: Options
    name: str = "auth-mount"
    title: str = "Kubernetes auth method in Vault"
    area: Area = Area.VAULT
    hint: str = "the token needs create, read and sudo on sys/auth"

    def check(self, world: World) -> None:
        """Nothing is brought for it."""

    def plan(self, world: World) -> Sequence[Change]:
        """Return the mount's creation."""
        return [] if self._exists(world) else [Change(Action.CREATE, self._what)]

    def apply(self, world: World) -> None:
        """Mount it."""
        if not self._exists(world):
            world.vault.write(self._path, {"type": "kubernetes"})

    def undo(self, world: World, created: Collection[str]) -> Sequence[str]:
        """Unmount it if it was mounted here."""
        if not self._exists(world):
            return []
        if self._what not in created:
            return [f"{self._what} was there before"]
        world.vault.delete(self._path)
        return []

    def _exists(self, world: World) -> bool:
        found = world.vault.mounts("auth").get(f"{self.options.hsm_secret_path}/")
        if found is not None and found.get("type") != "kubernetes":
            raise RefusedError(
                f"{self._what} exists as {found.get('type')}",
                hint="set another vault.hsmSecretPath",
            )
        return found is not None

    @property
    def _path(self) -> str:
        return f"sys/auth/{self.options.hsm_secret_path}"

    @property
    def _what(self) -> str:
        return f"auth mount {self.options.hsm_secret_path}"
