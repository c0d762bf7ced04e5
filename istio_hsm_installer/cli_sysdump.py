"""`istio-hsm sysdump`: a support bundle without secrets, or none at all."""

from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from istio_hsm_installer import config as environment
from istio_hsm_installer import screen, sysdump
from istio_hsm_installer.errors import InputError
from istio_hsm_installer.exits import EXIT_FINDINGS, EXIT_FINE
from istio_hsm_installer.installation import Installation
from istio_hsm_installer.screen import Output
from istio_hsm_installer.wiring import (
    DEFAULT_CONFIG,
    ConfigOption,
    ContextOption,
    KubeconfigOption,
    NamespaceOption,
    OutputOption,
    Target,
    VaultTokenOption,
    load_options,
)


def sysdump_command(
    out: Annotated[
        Path | None, typer.Option(help="Where to write it; a dated name here otherwise.")
    ] = None,
    leave_out: Annotated[
        list[str] | None, typer.Option(help="A file of the bundle to leave out; repeatable.")
    ] = None,
    vault_token_file: VaultTokenOption = None,
    config: ConfigOption = DEFAULT_CONFIG,
    namespace: NamespaceOption = None,
    context: ContextOption = None,
    kubeconfig: KubeconfigOption = None,
    output: OutputOption = Output.TEXT,
) -> int:
    """Pack pods, logs, Events and settings for support. A secret in it: no bundle, exit 79."""
    options = load_options(config, namespace)
    target = out or Path(f"istio-hsm-sysdump-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.tar.gz")
    if target.exists():
        raise InputError(f"{target} exists already", hint="name another with --out")
    installation = Installation(options, Target(context, kubeconfig).connect())
    gathered = sysdump.gather(installation, environment.named_vault_token(vault_token_file))
    files = {name: text for name, text in gathered.files.items() if name not in (leave_out or ())}
    leaks = sysdump.write(replace(gathered, files=files), target)
    if output is Output.JSON:
        screen.as_json(
            {
                "bundle": None if leaks else str(target),
                "files": sorted(files),
                "failures": list(gathered.failures),
                "leaks": [asdict(leak) for leak in leaks],
            }
        )
        return EXIT_FINDINGS if leaks else EXIT_FINE
    for failure in gathered.failures:
        screen.say(f"? {failure}", "yellow")
    for leak in leaks:
        screen.say(f"! {leak.file} holds {', '.join(leak.kinds)}", "bold yellow")
    if leaks:
        screen.say("no bundle was kept", "bold")
        screen.say("    hint: find how it got there; then --leave-out that file", "cyan")
        return EXIT_FINDINGS
    screen.say(f"wrote {target}: {len(files)} files, no secret found in them", "bold")
    return EXIT_FINE
