"""The kv mount in Vault, tuned as the guide tunes it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from istio_hsm_installer import durations
from istio_hsm_installer.differences import between, over_wanted
from istio_hsm_installer.errors import RefusedError, VaultForbiddenError, VaultRejectedError
from istio_hsm_installer.objects import Document, section
from istio_hsm_installer.options import Options
from istio_hsm_installer.steps.step import Action, Area, Change, World
from istio_hsm_installer.waiting import wait_until


@dataclass(frozen=True, slots=True)
class KvMount:
    """Mounts and tunes; unmounts only what it mounted and what is empty."""

    options: Options
    name: str = "kv-mount"
    title: str = "kv mount in Vault"
    area: Area = Area.VAULT
    hint: str = "the token needs create and read on sys/mounts"

    def check(self, world: World) -> None:
        """Nothing is brought for it."""

    def plan(self, world: World) -> Sequence[Change]:
        """Return the mount's creation or its tuning."""
        found = self._found(world)
        if found is None:
            wanted = {"type": "kv", "version": self.options.vault.kv_version, **self._tuning}
            return [Change(Action.CREATE, self._what, between(None, wanted))]
        changed = over_wanted(self._tuned(found), self._tuning)
        if changed:
            return [Change(Action.UPDATE, self._what, changed)]
        if not self._is_ready(world):
            return [Change(Action.UPDATE, self._what, note="it is being prepared")]
        return []

    def apply(self, world: World) -> None:
        """Mount and tune."""
        if self._found(world) is None:
            options = {"version": str(self.options.vault.kv_version)}
            world.vault.write(self._path, {"type": "kv", "options": options})
        world.vault.write(f"{self._path}/tune", {"max_lease_ttl": self._tuning["max_lease_ttl"]})
        wait_until(f"{self._what} is ready", lambda: self._is_ready(world))

    def undo(self, world: World, created: Collection[str]) -> Sequence[str]:
        """Unmount it if it was mounted here and holds nothing."""
        if self._found(world) is None:
            return []
        if self._what not in created:
            return [f"{self._what} was there before"]
        if names := world.vault.names(self._listing):
            return [f"{self._what} still holds {', '.join(names)}"]
        world.vault.delete(self._path)
        return []

    def _found(self, world: World) -> Document | None:
        found = world.vault.mounts("mounts").get(f"{self.options.kv_mount}/")
        if found is None:
            return None
        version = section(found, "options").get("version") or "1"
        if found.get("type") != "kv" or version != str(self.options.vault.kv_version):
            raise RefusedError(
                f"{self._what} exists as {found.get('type')} version {version}",
                hint="set vault.kvVersion to it if it is kv, or another vault.kvMount",
            )
        return found

    def _is_ready(self, world: World) -> bool:
        """Return whether the mount answers: version 2 takes a moment after it is made."""
        try:
            world.vault.names(self._listing)
        except VaultRejectedError:
            return False
        except VaultForbiddenError:
            return True  # this token may not list, and need not
        return True

    @property
    def _listing(self) -> str:
        mount = self.options.kv_mount
        return mount if self.options.vault.kv_version == 1 else f"{mount}/metadata"

    def _tuned(self, found: Document) -> Mapping[str, object]:
        seconds = section(found, "config").get("max_lease_ttl")
        wanted = int(self.options.vault.max_lease_ttl.total_seconds())
        return self._tuning if seconds == wanted else {"max_lease_ttl": f"{seconds}s"}

    @property
    def _tuning(self) -> Mapping[str, str]:
        return {"max_lease_ttl": durations.text(self.options.vault.max_lease_ttl)}

    @property
    def _what(self) -> str:
        return f"kv mount {self.options.kv_mount}"

    @property
    def _path(self) -> str:
        return f"sys/mounts/{self.options.kv_mount}"
