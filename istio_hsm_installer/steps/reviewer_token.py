"""The Secret with the reviewer's token, which Kubernetes fills in."""

import base64
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from istio_hsm_installer.config import Secret
from istio_hsm_installer.errors import RefusedError
from istio_hsm_installer.objects import MANAGED_BY, Document, ref_of, section
from istio_hsm_installer.options import Options
from istio_hsm_installer.steps.kube_object import plan_object, undo_object
from istio_hsm_installer.steps.step import Action, Area, Change, World
from istio_hsm_installer.waiting import wait_until

_TYPE = "kubernetes.io/service-account-token"
_ACCOUNT = "kubernetes.io/service-account.name"


@dataclass(frozen=True, slots=True)
class Reviewer:
    """What Vault needs to review tokens."""

    token: Secret
    ca_pem: str


@dataclass(frozen=True, slots=True)
class ReviewerToken:
    """Creates the token's Secret and waits until the token is in it."""

    options: Options
    name: str = "reviewer-token"
    title: str = "token that Vault reviews tokens with"
    area: Area = Area.KUBERNETES
    hint: str = "check that kube-controller-manager runs: it fills the Secret in"

    def check(self, world: World) -> None:
        """Nothing is brought for it."""

    def plan(self, world: World) -> Sequence[Change]:
        """Return the creation of the Secret, or the wait for its token."""
        document = document_of(self.options)
        found = world.kube.read(ref_of(document))
        if found is None:
            return plan_object(world, document)
        self._check_ours(found)
        if read_reviewer(world) is None:
            return [Change(Action.UPDATE, str(ref_of(document)), note="its token is awaited")]
        return []

    def apply(self, world: World) -> None:
        """Create it if needed, and wait."""
        document = document_of(self.options)
        if world.kube.read(ref_of(document)) is None:
            world.kube.apply(document)
        wait_until(
            f"{ref_of(document)} holds a token",
            lambda: read_reviewer(world) is not None,
            hint=self.hint,
        )

    def undo(self, world: World, created: Collection[str]) -> Sequence[str]:
        """Delete the Secret, which ends the token's life, if it was created here."""
        return undo_object(world, document_of(self.options), created)

    def _check_ours(self, found: Document) -> None:
        account = section(found, "metadata", "annotations").get(_ACCOUNT)
        if found.get("type") != _TYPE or account != self.options.vault.reviewer_service_account:
            raise RefusedError(
                f"{ref_of(document_of(self.options))} exists and is something else",
                hint="name another Secret in vault.reviewerTokenSecret",
            )


def document_of(options: Options) -> Document:
    """Return the Secret to create."""
    vault = options.vault
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": vault.reviewer_token_secret,
            "namespace": vault.reviewer_namespace,
            "annotations": {_ACCOUNT: vault.reviewer_service_account},
            "labels": MANAGED_BY,
        },
        "type": _TYPE,
    }


def read_reviewer(world: World) -> Reviewer | None:
    """Return the token and the API server's CA; None while they are not there."""
    data = section(world.kube.read(ref_of(document_of(world.options))), "data")
    token, ca_pem = data.get("token"), data.get("ca.crt")
    if not isinstance(token, str) or not isinstance(ca_pem, str):
        return None
    return Reviewer(Secret(base64.b64decode(token)), base64.b64decode(ca_pem).decode())
