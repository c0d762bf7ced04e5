"""`istio-hsm plan`, `apply` and `undo`: the guide's steps; and what istioctl is told."""

from typing import Annotated

import typer

from istio_hsm_installer import documents, engine, istioctl, plan, screen
from istio_hsm_installer.engine import Outcome, Result
from istio_hsm_installer.errors import InputError
from istio_hsm_installer.exits import EXIT_FINE, EXIT_PENDING
from istio_hsm_installer.files import read_pem
from istio_hsm_installer.options import Flavour, Mode
from istio_hsm_installer.screen import Output
from istio_hsm_installer.state import only_one
from istio_hsm_installer.steps import istio
from istio_hsm_installer.steps.step import Area
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

OnlyOption = Annotated[
    list[Area] | None, typer.Option("--only", help="Only the steps of this area; repeatable.")
]


def plan_command(
    config: ConfigOption = DEFAULT_CONFIG,
    only: OnlyOption = None,
    vault_token_file: VaultTokenOption = None,
    state: StateOption = None,
    namespace: NamespaceOption = None,
    context: ContextOption = None,
    kubeconfig: KubeconfigOption = None,
    output: OutputOption = Output.TEXT,
) -> int:
    """Show what apply would change in Kubernetes, Vault and the HSM; change nothing."""
    options = load_options(config, namespace)
    world = make_world(options, Target(context, kubeconfig), vault_token_file)
    load_state(world, state, config)
    results = engine.plan(plan.steps(options, only or ()), world, reporter(output))
    pending = any(result.outcome is Outcome.PENDING for result in results)
    conclude(output, results, "no changes" if not pending else screen.counted(results))
    return EXIT_PENDING if pending else EXIT_FINE


def apply_command(
    config: ConfigOption = DEFAULT_CONFIG,
    only: OnlyOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Finish a stopped apply.")] = False,  # noqa: FBT002 - a flag of the command line
    vault_token_file: VaultTokenOption = None,
    state: StateOption = None,
    namespace: NamespaceOption = None,
    context: ContextOption = None,
    kubeconfig: KubeconfigOption = None,
    output: OutputOption = Output.TEXT,
) -> int:
    """Do what plan shows, step by step; done again, it changes nothing."""
    options = load_options(config, namespace)
    world = make_world(options, Target(context, kubeconfig), vault_token_file)
    with only_one(config):
        results = engine.apply(
            plan.steps(options, only or ()),
            world,
            load_state(world, state, config),
            reporter(output),
            resume=resume,
        )
    changed = any(result.outcome is not Outcome.UNCHANGED for result in results)
    conclude(output, results, screen.counted(results) if changed else "no changes")
    manual = any(result.outcome is Outcome.MANUAL for result in results)
    return EXIT_PENDING if manual else EXIT_FINE


def undo_command(
    config: ConfigOption = DEFAULT_CONFIG,
    only: OnlyOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,  # noqa: FBT002 - a flag of the command line
    vault_token_file: VaultTokenOption = None,
    state: StateOption = None,
    namespace: NamespaceOption = None,
    context: ContextOption = None,
    kubeconfig: KubeconfigOption = None,
    output: OutputOption = Output.TEXT,
) -> int:
    """Take away what apply created, last step first; what was there before stays."""
    options = load_options(config, namespace)
    if not yes and not typer.confirm("Take away what apply created?", err=True):
        raise InputError("nothing was undone", hint="answer y, or give --yes")
    world = make_world(options, Target(context, kubeconfig), vault_token_file)
    with only_one(config):
        results = engine.undo(
            plan.steps(options, only or ()),
            world,
            load_state(world, state, config),
            reporter(output),
        )
    conclude(output, results, screen.counted(results))
    return EXIT_FINE


def istioctl_command(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Write the istioctl command line that apply runs; for upstream, its overlay too."""
    options = load_options(config)
    screen.say(istioctl.as_text([options.istio.istioctl, *istioctl.install(options)]))
    if options.istio.flavour is Flavour.UPSTREAM:
        screen.say(documents.to_yaml(istio.overlay(options)))


def values_command(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Write the Helm values of the chart istiod, for upstream Istio installed by Helm."""
    options = load_options(config)
    if options.istio.flavour is Flavour.ASM:
        raise InputError(
            "the guide's ASM is installed by istioctl, not by Helm", hint="see: istio-hsm istioctl"
        )
    root = read_pem(options.hsm.root_cert_file) if options.mode is Mode.CSR_SIGNER else b""
    screen.say(documents.to_yaml(istioctl.helm_values(options, root.decode("ascii"))))


def reporter(output: Output) -> engine.Report:
    """Return what hears of each step as it is done."""

    def quiet(result: Result) -> None:
        del result

    return quiet if output is Output.JSON else screen.step


def conclude(output: Output, results: engine.Results, text: str) -> None:
    """Write the results, or what is left to say of them."""
    if output is Output.JSON:
        screen.as_json({"steps": [screen.step_document(r) for r in results], "summary": text})
    else:
        screen.say(text, "bold")
