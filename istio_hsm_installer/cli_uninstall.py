"""`istio-hsm uninstall`: everything that apply, the ceremony and the mesh left, taken away."""

from typing import Annotated

import typer

from istio_hsm_installer import cli_install, engine, plan, screen
from istio_hsm_installer.errors import InputError, RefusedError
from istio_hsm_installer.installation import Installation
from istio_hsm_installer.screen import Output
from istio_hsm_installer.state import only_one
from istio_hsm_installer.wiring import (
    DEFAULT_CONFIG,
    ConfigOption,
    ContextOption,
    KubeconfigOption,
    NamespaceOption,
    OutputOption,
    StateOption,
    Target,
    VaultTokenOption,
    load_options,
    load_state,
    make_world,
)

ForceOption = Annotated[bool, typer.Option("--force", help="Even if namespaces are injected.")]
VaultSecretOption = Annotated[
    bool, typer.Option("--with-vault-secret", help="The HSM credentials in Vault, too.")
]
CaKeyOption = Annotated[
    bool, typer.Option("--with-ca-key", help="The Secret of the CA key, too: for good.")
]


def uninstall_command(
    force: ForceOption = False,  # noqa: FBT002 - a flag of the command line
    with_vault_secret: VaultSecretOption = False,  # noqa: FBT002 - a flag of the command line
    with_ca_key: CaKeyOption = False,  # noqa: FBT002 - a flag of the command line
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,  # noqa: FBT002 - a flag of the command line
    vault_token_file: VaultTokenOption = None,
    state: StateOption = None,
    config: ConfigOption = DEFAULT_CONFIG,
    namespace: NamespaceOption = None,
    context: ContextOption = None,
    kubeconfig: KubeconfigOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Take the mesh's CA away: as undo does, and what the CA left. Keys in the HSM stay."""
    options = load_options(config, namespace)
    world = make_world(options, Target(context, kubeconfig), vault_token_file)
    injected = Installation(options, world.kube).injected()
    if injected and not force:
        raise RefusedError(
            f"these namespaces are still injected: {', '.join(injected)}",
            hint="take the label istio.io/rev off and restart their pods, or give --force",
        )
    if not yes and not typer.confirm(
        f"Take away the mesh's CA in {options.istio.namespace}?", err=True
    ):
        raise InputError("nothing was taken away", hint="answer y, or give --yes")
    steps = plan.uninstall_steps(
        options, with_vault_secret=with_vault_secret, with_ca_key=with_ca_key
    )
    with only_one(config):
        results = engine.undo(
            steps, world, load_state(world, state, config), cli_install.reporter(output)
        )
    cli_install.conclude(output, results, screen.counted(results))
