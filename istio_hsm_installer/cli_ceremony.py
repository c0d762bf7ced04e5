"""`istio-hsm ceremony`: the offline root signs istiod's CA request; the chain is delivered."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from cryptography import x509

from istio_hsm_installer import ceremony, chain_delivery, screen, secret_dir
from istio_hsm_installer.files import read_file, write_file
from istio_hsm_installer.programs import Plugin
from istio_hsm_installer.screen import Output
from istio_hsm_installer.wiring import (
    ContextOption,
    KubeconfigOption,
    NamespaceOption,
    OutputOption,
    Target,
)

_NAMESPACE = "istio-system"
"""The ceremony reads no configuration: its machines may have none."""

DEFAULT_SOCKET = Path("/tmp/.hsm-sock")  # noqa: S108 - the guide's path

app = typer.Typer(
    help="Sign istiod's CA request with the offline root, and deliver the chain.",
)
csr_app = typer.Typer(help="The encrypted CSR that istiod or the bridge wrote.")
app.add_typer(csr_app, name="csr")
CsrArgument = Annotated[Path, typer.Argument(help="The decrypted CSR, PEM.", show_default=False)]


@csr_app.command()
def fetch(
    out: Annotated[Path, typer.Option(help="Where to write it.")] = Path("encrypted_csr.json"),
    namespace: NamespaceOption = None,
    context: ContextOption = None,
    kubeconfig: KubeconfigOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Fetch the encrypted CSR from the Secret istio-ca-cert-csr."""
    content = chain_delivery.encrypted_csr(
        Target(context, kubeconfig).connect(), namespace or _NAMESPACE
    )
    write_file(out, content, mode=0o644)
    screen.show(output, {"encrypted_csr": str(out)})


@app.command()
def decrypt(
    encrypted: Annotated[Path, typer.Argument(help="What `csr fetch` wrote.")],
    out: Annotated[Path, typer.Option(help="Where to write the CSR.")] = Path("csr.pem"),
    socket: Annotated[Path, typer.Option(help="Of the running HSM plugin.")] = DEFAULT_SOCKET,
    plugin_command: Annotated[str, typer.Option(help="The plugin's client.")] = "hsm-plugin",
    output: OutputOption = Output.TEXT,
) -> None:
    """Decrypt the CSR through the HSM plugin, and show whose key it is for."""
    read_file(encrypted)
    pem = Plugin(plugin_command, socket).decrypt_csr(encrypted).encode()
    request = ceremony.load_request(pem)
    write_file(out, pem, mode=0o644)
    screen.show(output, {"csr": str(out), **_about(request)})


@app.command()
def show(csr: CsrArgument, output: OutputOption = Output.TEXT) -> None:
    """Show whose key a CSR is for, so that two people can compare it before signing."""
    screen.show(output, _about(ceremony.load_request(read_file(csr))))


@app.command()
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
    request = ceremony.load_request(read_file(csr))
    root = ceremony.load_chain(read_file(root_cert))[0]
    passphrase = None if passphrase_file is None else read_file(passphrase_file).rstrip(b"\r\n")
    certificate = ceremony.sign(
        request,
        root,
        ceremony.load_root_key(read_file(root_key), passphrase),
        lifetime=timedelta(days=days),
        now=datetime.now(UTC),
    )
    write_file(chain, ceremony.to_pem([certificate, root]), mode=0o644)
    screen.show(output, {"chain": str(chain), **_described(certificate)})


@app.command()
def submit(
    chain: Annotated[
        Path, typer.Argument(help="cert-chain.pem: the CA's certificate first, the root last.")
    ],
    csr: Annotated[Path, typer.Option(help="The CSR that the chain must answer, PEM.")],
    store_dir: Annotated[
        Path | None,
        typer.Option(help="The bridge's BRIDGE_STORE_DIR; the Secret istio-ca-cert otherwise."),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace another chain.")] = False,  # noqa: FBT002 - a flag of the command line
    wait: Annotated[int, typer.Option(min=0, help="Seconds to wait for istiod.")] = 120,
    selector: Annotated[str, typer.Option(help="Of the pods to wait for.")] = "app=istiod",
    namespace: NamespaceOption = None,
    context: ContextOption = None,
    kubeconfig: KubeconfigOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Deliver a chain, unless its key is not the one that the CSR was made with."""
    certificates = ceremony.load_chain(read_file(chain))
    request = ceremony.load_request(read_file(csr))
    ceremony.check_chain(certificates, request, now=datetime.now(UTC))
    pem = ceremony.to_pem(certificates)
    if store_dir is not None:
        delivered = str(secret_dir.write_chain(store_dir, pem))
    else:
        cluster = Target(context, kubeconfig).connect()
        namespace = namespace or _NAMESPACE
        delivered = chain_delivery.deliver(cluster, namespace, pem, replace=replace)
        if wait:
            chain_delivery.wait_until_ready(
                cluster, namespace, selector, seconds=wait, tell=screen.tell
            )
    screen.show(output, {"delivered": delivered, **_described(certificates[0])})


def _about(request: ceremony.Request) -> dict[str, str]:
    return {
        "subject": request.subject,
        "key": request.key_kind,
        "public_key_sha256": request.key_sha256,
    }


def _described(certificate: x509.Certificate) -> dict[str, str]:
    return {
        "subject": certificate.subject.rfc4514_string(),
        "issuer": certificate.issuer.rfc4514_string(),
        "not_after": certificate.not_valid_after_utc.isoformat(),
    }
