"""The operator's command line.

Exit codes: 0 fine, 1 failed, 2 changes pending, 64 the command line is wrong, 79 findings.
"""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated

import typer
import typer.exceptions

from istio_hsm_installer import (
    cli_ceremony,
    cli_check,
    cli_config,
    cli_drill,
    cli_gateway,
    cli_install,
    cli_status,
    cli_sysdump,
    cli_uninstall,
    cli_verify,
    screen,
)
from istio_hsm_installer.errors import InstallerError
from istio_hsm_installer.exits import EXIT_FAILED, EXIT_FINE, EXIT_USAGE

app = typer.Typer(
    name="istio-hsm",
    help="Installs and keeps an Istio mesh whose CA key is protected by an HSM.",
    pretty_exceptions_enable=False,
)
app.add_typer(cli_config.app, name="config")
app.command(name="check")(cli_check.check_command)
app.command(name="plan")(cli_install.plan_command)
app.command(name="apply")(cli_install.apply_command)
app.command(name="undo")(cli_install.undo_command)
app.command(name="istioctl")(cli_install.istioctl_command)
app.command(name="values")(cli_install.values_command)
app.command(name="status")(cli_status.status_command)
app.command(name="verify")(cli_verify.verify_command)
app.command(name="sysdump")(cli_sysdump.sysdump_command)
app.command(name="inject")(cli_verify.inject_command)
app.command(name="expose")(cli_gateway.expose_command)
app.command(name="drill")(cli_drill.drill_command)
app.command(name="uninstall")(cli_uninstall.uninstall_command)
app.add_typer(cli_ceremony.app, name="ceremony")

_INTERRUPTED = 130
"""What Typer answers for Ctrl-C."""


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,  # noqa: FBT002 - a flag of the command line
) -> None:
    if show_version:
        typer.echo(version("istio-hsm"))
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def run(arguments: Sequence[str]) -> int:
    """Return the exit code."""
    try:
        result = app(list(arguments), standalone_mode=False)
    except InstallerError as error:
        screen.fail(error, _output_of(arguments))
        return EXIT_FAILED
    except typer.exceptions.TyperException as error:
        screen.fail_with(error.format_message(), "see --help")
        return EXIT_USAGE
    except (typer.Abort, KeyboardInterrupt):
        result = _INTERRUPTED
    if result == _INTERRUPTED:
        screen.fail_with("interrupted", "see what is left with plan, or just start again")
        return EXIT_FAILED
    return result if isinstance(result, int) else EXIT_FINE


def _output_of(arguments: Sequence[str]) -> screen.Output:
    """Return how the result was to be written: an error is written so, too."""
    pairs = zip(arguments, [*arguments[1:], ""], strict=True)
    asked = ("-o", "--output")
    is_json = any(
        (name in asked and value == "json") or name in {"-ojson", "--output=json"}
        for name, value in pairs
    )
    return screen.Output.JSON if is_json else screen.Output.TEXT
