"""`istio-hsm ceremony`: the offline root signs istiod's CA request; the chain is delivered."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from istio_hsm_installer import (
    ceremony,
    certificates,
    chain_delivery,
    offline_plugin,
    pkcs11_uri,
    root_crl,
    screen,
    secret_dir,
    token_key,
)
from istio_hsm_installer.errors import InputError, ToolError
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

PluginOption = Annotated[str, typer.Option(help="The program hsm-plugin.")]
RootUriOption = Annotated[
    str, typer.Option(help="The root's key in a token, a PKCS#11 URI (RFC 7512).")
]


OptionalRootUri = Annotated[
    str | None, typer.Option(help="The root's key in a token, a PKCS#11 URI (RFC 7512).")
]
RootCertOption = Annotated[Path, typer.Option(help="The root certificate, PEM.")]
RootKeyOption = Annotated[
    Path | None, typer.Option(help="The offline root's private key, PEM; or --root-pkcs11.")
]
PassphraseOption = Annotated[Path | None, typer.Option(help="Holds the root key's passphrase.")]


class RootAlgorithm(StrEnum):
    """Of a root's key."""

    ECDSA_P256 = "ECDSA_P256"
    ECDSA_P384 = "ECDSA_P384"
    RSA_3072 = "RSA_3072"
    RSA_4096 = "RSA_4096"


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
    plugin_command: PluginOption = "hsm-plugin",
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
def root(
    root_pkcs11: RootUriOption,
    root_cert: Annotated[Path, typer.Option(help="Where to write the root certificate.")],
    subject: Annotated[str, typer.Option(help="RFC 4514, such as CN=Mesh Root,O=Example.")],
    key_algorithm: Annotated[
        RootAlgorithm, typer.Option(help="Of the key, when it is made.")
    ] = RootAlgorithm.ECDSA_P384,
    days: Annotated[int, typer.Option(min=1, max=36500, help="Validity.")] = 3650,
    plugin_command: PluginOption = "hsm-plugin",
    output: OutputOption = Output.TEXT,
) -> None:
    """Make an offline root whose key is made in a token and stays there."""
    if root_cert.exists():
        raise InputError(f"{root_cert} exists already", hint="a root is made once; name another")
    uri = pkcs11_uri.parse(root_pkcs11)
    with offline_plugin.running(plugin_command, uri) as plugin:
        made = plugin.make_signing_key(uri.key_id, key_algorithm.value)
        public_key = _public_key(made)
        key = token_key.of(public_key, partial(plugin.sign_digest, uri.key_id))
        certificate = ceremony.make_root(
            subject, key, lifetime=timedelta(days=days), now=datetime.now(UTC)
        )
    write_file(root_cert, ceremony.to_pem([certificate]), mode=0o644)
    screen.show(output, {"root": str(root_cert), **_described(certificate)})


@app.command()
def sign(
    csr: CsrArgument,
    root_cert: RootCertOption,
    chain: Annotated[Path, typer.Option(help="Where to write cert-chain.pem.")],
    root_key: RootKeyOption = None,
    passphrase_file: PassphraseOption = None,
    root_pkcs11: OptionalRootUri = None,
    plugin_command: PluginOption = "hsm-plugin",
    days: Annotated[int, typer.Option(min=1, max=3650, help="Validity.")] = 365,
    output: OutputOption = Output.TEXT,
) -> None:
    """Sign a CSR with an offline root, its key in a file or in a token: CA, path length 0."""
    _check_told_once(root_key, root_pkcs11)
    request = ceremony.load_request(read_file(csr))
    certificate = ceremony.load_chain(read_file(root_cert))[0]
    with _root_key(certificate, root_key, passphrase_file, root_pkcs11, plugin_command) as key:
        signed = ceremony.sign(
            request, certificate, key, lifetime=timedelta(days=days), now=datetime.now(UTC)
        )
    write_file(chain, ceremony.to_pem([signed, certificate]), mode=0o644)
    screen.show(output, {"chain": str(chain), **_described(signed)})


@app.command()
def crl(
    root_cert: RootCertOption,
    out: Annotated[Path, typer.Option(help="Where to write the list.")] = Path("issuer-crls.pem"),
    revoke: Annotated[
        list[str] | None, typer.Option(help="The serial of a CA certificate to revoke, in hex.")
    ] = None,
    root_key: RootKeyOption = None,
    passphrase_file: PassphraseOption = None,
    root_pkcs11: OptionalRootUri = None,
    plugin_command: PluginOption = "hsm-plugin",
    days: Annotated[int, typer.Option(min=1, max=3650, help="Until the next list.")] = 1825,
    output: OutputOption = Output.TEXT,
) -> None:
    """Sign the offline root's revocation list, which a bridge with CA_CRL=true publishes."""
    _check_told_once(root_key, root_pkcs11)
    serials = [root_crl.serial_of(text) for text in revoke or ()]
    certificate = ceremony.load_chain(read_file(root_cert))[0]
    with _root_key(certificate, root_key, passphrase_file, root_pkcs11, plugin_command) as key:
        signed = root_crl.make_crl(
            certificate, key, serials, lifetime=timedelta(days=days), now=datetime.now(UTC)
        )
    write_file(out, signed.public_bytes(serialization.Encoding.PEM), mode=0o644)
    ends = signed.next_update_utc
    told = {"crl": str(out), "issuer": signed.issuer.rfc4514_string(), "revoked": str(len(signed))}
    screen.show(output, told | {"next_update": ends.isoformat() if ends else ""})


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
    delivered_chain = ceremony.load_chain(read_file(chain))
    request = ceremony.load_request(read_file(csr))
    ceremony.check_chain(delivered_chain, request, now=datetime.now(UTC))
    pem = ceremony.to_pem(delivered_chain)
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
    screen.show(output, {"delivered": delivered, **_described(delivered_chain[0])})


def _public_key(made: Mapping[str, object]) -> object:
    try:
        return serialization.load_pem_public_key(str(made.get("public_key", "")).encode())
    except certificates.MALFORMED:
        raise ToolError(
            "hsm-plugin answered no public key", hint="name this project's with --plugin-command"
        ) from None


def _check_told_once(root_key: Path | None, root_pkcs11: str | None) -> None:
    if (root_key is None) == (root_pkcs11 is None):
        raise InputError(
            "where the root's key is must be told once", hint="give --root-key or --root-pkcs11"
        )


@contextmanager
def _root_key(
    certificate: x509.Certificate,
    root_key: Path | None,
    passphrase_file: Path | None,
    root_pkcs11: str | None,
    plugin_command: str,
) -> Iterator[ceremony.RootKey]:
    """Hold the root's key, in a file or in a token, for as long as it signs."""
    if root_key is not None:
        passphrase = None if passphrase_file is None else read_file(passphrase_file).rstrip(b"\r\n")
        yield ceremony.load_root_key(read_file(root_key), passphrase)
        return
    uri = pkcs11_uri.parse(str(root_pkcs11))
    with offline_plugin.running(plugin_command, uri) as plugin:
        _check_in_token(plugin, uri.key_id, certificate)
        yield token_key.of(certificate.public_key(), partial(plugin.sign_digest, uri.key_id))


def _check_in_token(plugin: Plugin, key_id: str, certificate: x509.Certificate) -> None:
    """Return when the token's key is the root certificate's."""
    listed = {entry.get("key_id"): entry for entry in plugin.signing_keys()}
    found = listed.get(key_id)
    if found is None:
        known = ", ".join(sorted(map(str, listed))) or "none"
        raise InputError(
            f"the token has no signing key {key_id}",
            hint=f"its signing keys: {known}; hsm-plugin knows them by their label, see the docs",
        )
    if found.get("public_key_sha256") != certificates.key_sha256(certificate.public_key()):
        raise InputError(
            f"the key {key_id} in the token is not the root certificate's",
            hint=str(found.get("fault") or "give the certificate that was made for this key"),
        )


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
