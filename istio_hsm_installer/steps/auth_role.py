"""The role that istiod's pod logs in with."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from istio_hsm_installer.differences import over_wanted
from istio_hsm_installer.options import Options
from istio_hsm_installer.steps.step import Action, Area, Change, World


@dataclass(frozen=True, slots=True)
class AuthRole:
    """Binds istiod's ServiceAccount to the policy."""

    options: Options
    name: str = "auth-role"
    title: str = "role that istiod logs in with"
    area: Area = Area.VAULT
    hint: str = "the token needs create, read and update on the auth mount's role"

    def check(self, world: World) -> None:
        """Nothing is brought for it."""

    def plan(self, world: World) -> Sequence[Change]:
        """Return the difference to the role that Vault has."""
        found = world.vault.read(self._path)
        if found is not None:
            found = {
                **found,
                "audience": found.get("audience") or "",
            }  # left out when there is none
        changed = over_wanted(found, self._wanted)
        if not changed:
            return []
        return [Change(Action.UPDATE if found else Action.CREATE, self._what, changed)]

    def apply(self, world: World) -> None:
        """Write it."""
        world.vault.write(self._path, self._wanted)

    def undo(self, world: World, created: Collection[str]) -> Sequence[str]:
        """Delete it if it was created here."""
        if world.vault.read(self._path) is None:
            return []
        if self._what not in created:
            return [f"{self._what} was there before"]
        world.vault.delete(self._path)
        return []

    @property
    def _wanted(self) -> Mapping[str, object]:
        return {
            "bound_service_account_names": [self.options.service_account],
            "bound_service_account_namespaces": [self.options.istio.namespace],
            "audience": self.options.audience or "",
            "token_policies": [self.options.policy],
            "token_ttl": int(self.options.vault.role_ttl.total_seconds()),
        }

    @property
    def _path(self) -> str:
        return f"auth/{self.options.hsm_secret_path}/role/{self.options.vault.role}"

    @property
    def _what(self) -> str:
        return f"role {self.options.vault.role} of auth mount {self.options.hsm_secret_path}"
