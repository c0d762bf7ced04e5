"""`istio-hsm config`: the one file that all other commands read."""

from pathlib import Path
from typing import Annotated

import typer

from istio_hsm_installer import files, schema, screen
from istio_hsm_installer.errors import InputError
from istio_hsm_installer.screen import Output
from istio_hsm_installer.wiring import DEFAULT_CONFIG, ConfigOption, OutputOption, load_options

app = typer.Typer(help="Write, check and describe the configuration file.")


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="Where to write it.")] = DEFAULT_CONFIG,
) -> None:
    """Write a configuration to fill in: required settings, and defaults as comments."""
    if path.exists():
        raise InputError(f"{path} exists", hint="give another path, or move it away")
    files.write_file(path, schema.template().encode(), mode=0o644)
    screen.say(f"wrote {path}: fill it in, then istio-hsm config validate -f {path}")


@app.command()
def validate(config: ConfigOption = DEFAULT_CONFIG, output: OutputOption = Output.TEXT) -> None:
    """Check the file, tell every fault, and show what follows from it."""
    options = load_options(config)
    screen.show(
        output,
        {
            "suffix": options.cluster.suffix,
            "hsm_secret_path": options.hsm_secret_path,
            "policy": options.policy,
            "service_account": f"{options.istio.namespace}/{options.service_account}",
            "audience": options.audience or "",
            "mode": options.mode.value,
            "istio": f"{options.istio.flavour} {options.istio.version} {options.istio.revision}",
        },
    )


@app.command(name="schema")
def show_schema() -> None:
    """Write the JSON Schema of the file, for editors."""
    screen.as_json(schema.json_schema())
