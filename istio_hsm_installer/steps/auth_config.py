"""How Vault reviews this cluster's tokens: API server, its CA, and the reviewer's token."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from istio_hsm_installer.config import Secret
from istio_hsm_installer.differences import over_wanted
from istio_hsm_installer.errors import RefusedError
from istio_hsm_installer.options import Options
from istio_hsm_installer.steps.reviewer_token import Reviewer, read_reviewer
from istio_hsm_installer.steps.step import Action, Area, Change, World

_FACT = "reviewer-token-sha256"
"""Vault never gives the token back, so the state file has the digest of what was written."""


@dataclass(frozen=True, slots=True)
class AuthConfig:
    """Writes the configuration, the PEM with its line breaks and the token from memory."""

    options: Options
    name: str = "auth-config"
    title: str = "how Vault reviews this cluster's tokens"
    area: Area = Area.VAULT
    hint: str = "the token needs create, read and update on the auth mount's config"

    def check(self, world: World) -> None:
        """Nothing is brought for it."""

    def plan(self, world: World) -> Sequence[Change]:
        """Return the difference to Vault's configuration."""
        found, reviewer = world.vault.read(self._path), read_reviewer(world)
        if reviewer is None:
            note = "with the token that an earlier step makes"
            return [Change(Action.CREATE, self._what, note=note)]
        changed = list(over_wanted(found, self._wanted(world, reviewer)))
        note = ""
        if found is None or world.facts.get(_FACT) != _digest(reviewer.token):
            changed.append("+ token_reviewer_jwt (hidden)")
            note = "Vault does not tell the token that it has" if found else ""
        action = Action.UPDATE if found else Action.CREATE
        return [Change(action, self._what, tuple(changed), note)] if changed else []

    def apply(self, world: World) -> None:
        """Write it."""
        reviewer = read_reviewer(world)
        if reviewer is None:
            raise RefusedError(
                "there is no reviewer's token to give to Vault",
                hint="apply the area kubernetes first",
            )
        token = {"token_reviewer_jwt": reviewer.token.text()}
        world.vault.write(self._path, {**self._wanted(world, reviewer), **token})
        world.facts[_FACT] = _digest(reviewer.token)

    def undo(self, world: World, created: Collection[str]) -> Sequence[str]:
        """Leave it to the mount, with which it goes; forget the token's digest."""
        del created
        world.facts.pop(_FACT, None)
        return []

    def _wanted(self, world: World, reviewer: Reviewer) -> Mapping[str, object]:
        return {
            "kubernetes_host": self.options.cluster.api_server or world.kube.server,
            "kubernetes_ca_cert": reviewer.ca_pem,
        }

    @property
    def _path(self) -> str:
        return f"auth/{self.options.hsm_secret_path}/config"

    @property
    def _what(self) -> str:
        return f"configuration of auth mount {self.options.hsm_secret_path}"


def _digest(token: Secret) -> str:
    return hashlib.sha256(token.reveal()).hexdigest()
