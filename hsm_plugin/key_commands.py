"""Commands that end the life of a key: destroy-key, rotate-kek, retire-kek."""

import argparse
import binascii
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hsm_plugin import config, kek_rotation, kube
from hsm_plugin.client import Client
from hsm_plugin.dek_files import DekStream, files_of
from hsm_plugin.errors import BadRequestError, HsmPluginError
from hsm_plugin.kek_rotation import Outcome, Progress, Source
from hsm_plugin.key_reference import KeyUse, key_id

COMMANDS = ("destroy-key", "rotate-kek", "retire-kek")
_STREAM = Path("-")

Show = Callable[[Mapping[str, object], str], None]
"""Writes a result: as JSON or as text, whatever was asked for."""


def add(commands: Any, client: argparse.ArgumentParser) -> None:
    """Add the commands to the parser's subcommands. `client`: what all clients take."""
    key = commands.add_parser("destroy-key", parents=[client], help="destroy a signing key")
    key.add_argument("--key-id", required=True, help="its id, or a PKCS#11 URI with it")
    key.add_argument("--confirm-key-id", required=True, help="the same once more")
    key.add_argument(
        "--public-key-sha256", required=True, help="of its public key, as list-keys prints it"
    )
    sources = argparse.ArgumentParser(add_help=False)
    sources.add_argument(
        "paths",
        nargs="*",
        type=Path,
        metavar="PATH",
        help="a file with an encrypted DEK or a Secret's JSON, a folder of such, or - for "
        "standard input and output",
    )
    sources.add_argument(
        "--secret",
        action="append",
        default=[],
        metavar="NAMESPACE/NAME",
        help="a Secret with kek-id and encrypted-dek; may be repeated",
    )
    sources.add_argument(
        "--api-server",
        default=config.api_server(),
        metavar="HOST:PORT",
        help="for --secret (now %(default)s)",
    )
    sources.add_argument(
        "--service-account",
        type=Path,
        default=config.SERVICE_ACCOUNT,
        metavar="DIR",
        help="for --secret: a folder with token and ca.crt (now %(default)s)",
    )
    rotate = commands.add_parser(
        "rotate-kek", parents=[client, sources], help="wrap DEKs by another KEK"
    )
    rotate.add_argument("--old-kek-id", required=True, help="the KEK that wraps them now")
    rotate.add_argument("--new-kek-id", required=True, help="an existing KEK")
    retire = commands.add_parser(
        "retire-kek", parents=[client, sources], help="destroy a KEK that wraps none of these"
    )
    retire.add_argument("--kek-id", required=True, help="the KEK to destroy")
    retire.add_argument("--confirm-kek-id", required=True, help="the same once more")


def run(options: argparse.Namespace, client: Client, show: Show) -> None:
    """Do it and show the result. HsmPluginError when it failed."""
    match options.command:
        case "destroy-key":
            _destroy_key(options, client, show)
        case "rotate-kek":
            _rotate(options, client, show)
        case _:
            _retire(options, client, show)


def _destroy_key(options: argparse.Namespace, client: Client, show: Show) -> None:
    try:
        sha256 = binascii.unhexlify(options.public_key_sha256)
    except ValueError:
        raise BadRequestError(
            "--public-key-sha256 is not hexadecimal", hint="copy it from `hsm-plugin list-keys`"
        ) from None
    key, confirm = (
        key_id(text, KeyUse.SIGNING) for text in (options.key_id, options.confirm_key_id)
    )
    client.destroy_key(key, confirm, sha256)
    show({"key_id": _shown(key), "destroyed": True}, f"Destroyed the signing key {_shown(key)}")


def _rotate(options: argparse.Namespace, client: Client, show: Show) -> None:
    stream = DekStream(sys.stdin.buffer) if options.paths == [_STREAM] else None
    if stream and options.secret:
        raise _mixed()
    sources: Sequence[Source] = [stream] if stream else _sources(options)
    if not sources:
        raise BadRequestError(
            "no encrypted DEK was named", hint="name files, folders, - or --secret NAMESPACE/NAME"
        )
    old, new = (key_id(text, KeyUse.KEK) for text in (options.old_kek_id, options.new_kek_id))
    outcomes = kek_rotation.rotate(sources, old, new, client.rewrap_dek)
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if failed:
        _tell(outcomes)
        raise HsmPluginError(
            f"{len(failed)} of {len(outcomes)} are not under the new KEK",
            hint="mend what is said above and run the same command again; keep the old KEK",
        )
    if stream is not None:
        sys.stdout.write((stream.content or b"").decode())
        return
    told = {outcome.name: outcome.progress.name.lower() for outcome in outcomes}
    text = "\n".join(f"{outcome.name}: {outcome.progress.value}" for outcome in outcomes)
    show({"new_kek_id": _shown(new), "sources": told}, text)


def _tell(outcomes: Sequence[Outcome]) -> None:
    for outcome in outcomes:
        if outcome.progress is not Progress.FAILED:
            sys.stderr.write(f"{outcome.name}: {outcome.progress.value}\n")
        elif outcome.error is not None:
            hint = f" ({outcome.error.hint})" if outcome.error.hint else ""
            sys.stderr.write(f"{outcome.name}: failed: {outcome.error}{hint}\n")


def _retire(options: argparse.Namespace, client: Client, show: Show) -> None:
    kek, confirm = (key_id(text, KeyUse.KEK) for text in (options.kek_id, options.confirm_kek_id))
    kek_rotation.check_unused(_sources(options), kek)
    client.destroy_kek(kek, confirm)
    show({"kek_id": _shown(kek), "destroyed": True}, f"Destroyed the KEK {_shown(kek)}")


def _sources(options: argparse.Namespace) -> list[Source]:
    if _STREAM in options.paths:
        raise _mixed()
    sources: list[Source] = [*files_of(options.paths)]
    api = kube.Api(options.api_server, options.service_account)
    return [*sources, *(kube.secret(api, text) for text in options.secret)]


def _mixed() -> BadRequestError:
    return BadRequestError(
        "- stands alone, and for rotate-kek only", hint="rotate what comes from a pipe on its own"
    )


def _shown(key: bytes) -> str:
    return key.decode("ascii", errors="backslashreplace")
