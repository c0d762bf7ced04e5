"""The operator's command line.

Exit codes: 0 fine, 1 failed, 2 changes pending, 64 the command line is wrong, 79 findings.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
import typer.exceptions
from cryptography import x509
from rich.console import Console
from rich.table import Table

from istio_hsm_installer import ceremony, secret_dir
from istio_hsm_installer.errors import InputError, InstallerError

EXIT_FAILED = 1
EXIT_USAGE = 64
_MAX_FILE_BYTES = 1 << 20

app = typer.Typer(
    name="istio-hsm",
    help="Installs and keeps an Istio mesh whose CA key is protected by an HSM.",
    pretty_exceptions_enable=False,
)
ceremony_app = typer.Typer(
    help="Sign istiod's CA request with the offline root, and deliver the chain.",
)
app.add_typer(ceremony_app, name="ceremony")


class Output(StrEnum):
    """How results are written."""

    TEXT = "text"
    JSON = "json"


OutputOption = Annotated[Output, typer.Option("--output", "-o", help="How to write the result.")]
CsrArgument = Annotated[Path, typer.Argument(help="The decrypted CSR, PEM.", show_default=False)]


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,  # noqa: FBT002 - a flag of the command line
) -> None:
    if show_version:
        typer.echo(version("istio-hsm"))
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


@ceremony_app.command()
def show(csr: CsrArgument, output: OutputOption = Output.TEXT) -> None:
    """Show whose key a CSR is for, so that two people can compare it before signing."""
    request = ceremony.load_request(_read(csr))
    _print(
        output,
        {
            "subject": request.subject,
            "key": request.key_kind,
            "public_key_sha256": request.key_sha256,
        },
    )


@ceremony_app.command()
def sign(
    csr: CsrArgument,
    root_cert: Annotated[Path, typer.Option(help="The root certificate, PEM.")],
    root_key: Annotated[Path, typer.Option(help="The offline root's private key, PEM.")],
    chain: Annotated[Path, typer.Option(help="Where to write cert-chain.pem.")],
    passphrase_file: Annotated[
        Path | None, typer.Option(help="Holds the root key's passphrase.")
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=3650, help="Validity.")] = 365,
    output: OutputOption = Output.TEXT,
) -> None:
    """Sign a CSR with an offline root kept in a file: CA, path length 0."""
    request = ceremony.load_request(_read(csr))
    root = ceremony.load_chain(_read(root_cert))[0]
    passphrase = None if passphrase_file is None else _read(passphrase_file).rstrip(b"\r\n")
    certificate = ceremony.sign(
        request,
        root,
        ceremony.load_root_key(_read(root_key), passphrase),
        lifetime=timedelta(days=days),
        now=datetime.now(UTC),
    )
    try:
        chain.write_bytes(ceremony.to_pem([certificate, root]))
    except OSError as error:
        raise InputError(f"{chain} cannot be written: {error.strerror}") from None
    _print(output, {"chain": str(chain), **_described(certificate)})


@ceremony_app.command()
def submit(
    chain: Annotated[
        Path, typer.Argument(help="cert-chain.pem: the CA's certificate first, the root last.")
    ],
    csr: Annotated[Path, typer.Option(help="The CSR that the chain must answer, PEM.")],
    store_dir: Annotated[Path, typer.Option(help="The bridge's BRIDGE_STORE_DIR.")],
    output: OutputOption = Output.TEXT,
) -> None:
    """Deliver a chain, unless its key is not the one that the CSR was made with."""
    certificates = ceremony.load_chain(_read(chain))
    request = ceremony.load_request(_read(csr))
    ceremony.check_chain(certificates, request, now=datetime.now(UTC))
    path = secret_dir.write_chain(store_dir, ceremony.to_pem(certificates))
    _print(output, {"delivered": str(path), **_described(certificates[0])})


def run(arguments: Sequence[str]) -> int:
    """Return the exit code."""
    try:
        result = app(list(arguments), standalone_mode=False)
    except InstallerError as error:
        _fail(str(error), error.hint)
        return EXIT_FAILED
    except typer.exceptions.TyperException as error:
        _fail(error.format_message(), "see --help")
        return EXIT_USAGE
    except (typer.Abort, KeyboardInterrupt):
        _fail("interrupted", "nothing was left half done; start again")
        return EXIT_FAILED
    return result if isinstance(result, int) else 0


def _described(certificate: x509.Certificate) -> dict[str, str]:
    return {
        "subject": certificate.subject.rfc4514_string(),
        "issuer": certificate.issuer.rfc4514_string(),
        "not_after": certificate.not_valid_after_utc.isoformat(),
    }


def _print(output: Output, result: Mapping[str, str]) -> None:
    if output is Output.JSON:
        sys.stdout.write(json.dumps(result) + "\n")
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in result.items():
        table.add_row(f"[bold]{name.replace('_', ' ')}[/bold]", value)
    Console(soft_wrap=True).print(table)


def _fail(message: str, hint: str) -> None:
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print("[bold red]error:[/bold red] ", end="")
    console.print(message, markup=False)
    if hint:
        console.print("[bold yellow]hint:[/bold yellow] ", end="")
        console.print(hint, markup=False)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror}", hint="check the path and its mode"
        ) from None
    if len(content) > _MAX_FILE_BYTES:
        raise InputError(f"{path} is larger than {_MAX_FILE_BYTES} bytes")
    return content
