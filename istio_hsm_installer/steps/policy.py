"""The policy that lets istiod's pod read the HSM credentials, and nothing else."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from istio_hsm_installer.differences import lines_of
from istio_hsm_installer.options import Options
from istio_hsm_installer.steps.step import Action, Area, Change, World


@dataclass(frozen=True, slots=True)
class Policy:
    """Writes the policy."""

    options: Options
    name: str = "policy"
    title: str = "policy that reads the HSM credentials"
    area: Area = Area.VAULT
    hint: str = "the token needs create, read and update on sys/policies/acl"

    def check(self, world: World) -> None:
        """Nothing is brought for it."""

    def plan(self, world: World) -> Sequence[Change]:
        """Return the difference to the policy that Vault has."""
        found = self._read(world)
        if found is None:
            return [Change(Action.CREATE, self._what, lines_of("", self.text))]
        changed = lines_of(found, self.text)
        return [Change(Action.UPDATE, self._what, changed)] if changed else []

    def apply(self, world: World) -> None:
        """Write it."""
        world.vault.write(self._path, {"policy": self.text})

    def undo(self, world: World, created: Collection[str]) -> Sequence[str]:
        """Delete it if it was created here."""
        if self._read(world) is None:
            return []
        if self._what not in created:
            return [f"{self._what} was there before"]
        world.vault.delete(self._path)
        return []

    @property
    def text(self) -> str:
        """The policy: read on the one path, which in kv version 2 is below data/."""
        path, mount = self.options.hsm_secret_path, self.options.kv_mount
        if self.options.vault.kv_version != 1:
            path = f"{mount}/data{path.removeprefix(mount)}"
        return f'path "{path}" {{\n  capabilities = ["read"]\n}}\n'

    def _read(self, world: World) -> str | None:
        found = world.vault.read(self._path)
        return None if found is None else str(found.get("policy", ""))

    @property
    def _path(self) -> str:
        return f"sys/policies/acl/{self.options.policy}"

    @property
    def _what(self) -> str:
        return f"policy {self.options.policy}"
