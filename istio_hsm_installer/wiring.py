"""From a command line to the world that steps, checks and ceremonies work on."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from istio_hsm_installer import config, documents, kube, schema
from istio_hsm_installer.errors import InputError, InstallerError
from istio_hsm_installer.files import read_file
from istio_hsm_installer.options import DNS_LABEL, Options
from istio_hsm_installer.programs import Plugin
from istio_hsm_installer.screen import Output
from istio_hsm_installer.state import State
from istio_hsm_installer.steps.step import World
from istio_hsm_installer.vault import Vault

DEFAULT_CONFIG = Path("istio-hsm.yaml")

ConfigOption = Annotated[
    Path, typer.Option("--config", "-f", help="The configuration; see `config init`.")
]
OutputOption = Annotated[Output, typer.Option("--output", "-o", help="How to write the result.")]
ContextOption = Annotated[str | None, typer.Option(help="The kubeconfig's context.")]
KubeconfigOption = Annotated[Path | None, typer.Option(help="The kubeconfig file.")]
NamespaceOption = Annotated[
    str | None,
    typer.Option(
        "--namespace", "-n", help="The control plane's namespace; else the configuration's."
    ),
]
VaultTokenOption = Annotated[
    Path | None,
    typer.Option(
        "--vault-token-file", help="Holds your Vault token; else VAULT_TOKEN_FILE, else asked."
    ),
]
StateOption = Annotated[
    Path | None, typer.Option("--state", help="The state file; beside the configuration.")
]


@dataclass(frozen=True, slots=True)
class Target:
    """Which cluster, as it was said on the command line."""

    context: str | None = None
    kubeconfig: Path | None = None

    @property
    def flags(self) -> tuple[str, ...]:
        """The same for istioctl."""
        flags: tuple[str, ...] = ()
        if self.kubeconfig:
            flags += ("--kubeconfig", str(self.kubeconfig))
        if self.context:
            flags += ("--context", self.context)
        return flags

    def connect(self) -> kube.Cluster:
        """Return the cluster."""
        return kube.connect(self.kubeconfig, self.context)


def load_options(path: Path, namespace: str | None = None) -> Options:
    """Return the options of a configuration file; a namespace given beside it counts more."""
    options = schema.parse(documents.from_yaml(read_file(path), str(path)), path.absolute().parent)
    if namespace is None:
        return options
    if not re.fullmatch(DNS_LABEL, namespace):
        raise InputError(f"{namespace!r} is no namespace", hint="correct --namespace")
    return replace(options, istio=replace(options.istio, namespace=namespace))


def make_world(options: Options, target: Target, token_file: Path | None) -> World:
    """Return the world; nothing is connected to yet."""

    def connect_vault() -> Vault:
        return Vault(
            options.vault.address,
            ca_file=options.vault.ca_file,
            namespace=options.vault.namespace,
            token=config.vault_token(token_file),
        )

    return World(
        options=options,
        connect_kube=target.connect,
        connect_vault=connect_vault,
        plugin=Plugin(options.hsm.plugin_command, options.hsm.socket),
        ask_pin=lambda: config.ask("PIN of the HSM slot", hint="name a file in hsm.pinFile"),
        istioctl_flags=target.flags,
    )


def load_state(world: World, path: Path | None, config_path: Path) -> State:
    """Return the state of this installation, its facts joined to the world."""
    installation = {
        "suffix": world.options.cluster.suffix,
        "vault": world.options.vault.address,
        "server": _server(world),
    }
    state = State(path or config_path.with_suffix(".state.json"), installation)
    world.facts = state.facts
    return state


def _server(world: World) -> str:
    """Return the API server's URL, empty where a part is done without a cluster."""
    try:
        return world.kube.server
    except InstallerError:
        return ""
