"""From options to the ordered steps of the guide. Pure."""

from collections.abc import Collection, Sequence

from istio_hsm_installer.options import Flavour, Mode, Options
from istio_hsm_installer.steps.auth_config import AuthConfig
from istio_hsm_installer.steps.auth_mount import AuthMount
from istio_hsm_installer.steps.auth_role import AuthRole
from istio_hsm_installer.steps.bridge_rights import BridgeRights
from istio_hsm_installer.steps.bridge_service import bridge_service
from istio_hsm_installer.steps.hsm_kek import HsmKek
from istio_hsm_installer.steps.hsm_root import HsmRoot
from istio_hsm_installer.steps.istio import Istio
from istio_hsm_installer.steps.istiod_service import IstiodService
from istio_hsm_installer.steps.kv_mount import KvMount
from istio_hsm_installer.steps.kv_secret import KvSecret
from istio_hsm_installer.steps.leftovers import Leftovers
from istio_hsm_installer.steps.namespace import NamespaceStep
from istio_hsm_installer.steps.policy import Policy
from istio_hsm_installer.steps.release_signature import ReleaseSignature
from istio_hsm_installer.steps.reviewer_account import ReviewerAccount
from istio_hsm_installer.steps.reviewer_binding import ReviewerBinding
from istio_hsm_installer.steps.reviewer_token import ReviewerToken
from istio_hsm_installer.steps.step import Area, Step
from istio_hsm_installer.steps.vault_ca import vault_ca


def steps(options: Options, areas: Collection[Area] = ()) -> Sequence[Step]:
    """Return the steps in the guide's order, of all areas unless some are named."""
    vault, istio = options.vault, options.istio
    ordered: list[Step] = []
    if options.release.archive is not None:
        ordered.append(ReleaseSignature(options.release))
    ordered += [
        HsmKek(options.hsm),
        HsmRoot(options.hsm),
        NamespaceStep(
            "reviewer-namespace", "namespace of Vault's reviewer", vault.reviewer_namespace
        ),
        ReviewerAccount(options),
        ReviewerBinding(options),
        ReviewerToken(options),
        KvMount(options),
        KvSecret(options),
        Policy(options),
        AuthMount(options),
        AuthConfig(options),
        AuthRole(options),
        NamespaceStep("istio-namespace", "namespace of the control plane", istio.namespace),
        vault_ca(options),
    ]
    if istio.flavour is Flavour.UPSTREAM:
        ordered.append(BridgeRights(options))
    ordered.append(Istio(options))
    if options.mode is Mode.CA_SERVER:
        ordered.append(bridge_service(options))
    if istio.revision:
        ordered.append(IstiodService(options))
    return [step for step in ordered if not areas or step.area in areas]


def uninstall_steps(
    options: Options, *, with_vault_secret: bool, with_ca_key: bool
) -> Sequence[Step]:
    """Return the steps to undo for good: what the CA left goes between Istio and its namespace."""
    ordered: list[Step] = []
    for step in steps(options):
        if isinstance(step, KvMount | KvSecret) and not with_vault_secret:
            continue
        if isinstance(step, Istio):
            ordered.append(Leftovers(options, with_ca_key))
        ordered.append(step)
    return ordered
