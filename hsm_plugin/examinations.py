"""Commands that look and judge: doctor, bench, audit."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hsm_plugin import audit_command, bench_command, diagnosis, durations, token_options
from hsm_plugin.bench_command import Bench
from hsm_plugin.client import Client
from hsm_plugin.doctor_command import Doctor

COMMANDS = ("doctor", "bench", "audit")
EXIT_FINDINGS = 79

Show = Callable[[Mapping[str, object], str], None]
"""Writes a result: as JSON or as text, whatever was asked for."""


def add(commands: Any, client: argparse.ArgumentParser, token: argparse.ArgumentParser) -> None:
    """Add the commands to the parser's subcommands.

    `client`: what all clients take. `token`: what those take that look for a token.
    """
    doctor = commands.add_parser(
        "doctor", parents=[client, token], help="find what is wrong; exit 79 when something is"
    )
    doctor.add_argument("-o", dest="output", choices=("text", "json"), help="as --output")
    bench = commands.add_parser(
        "bench", parents=[client, token], help="what this token signs a second"
    )
    bench.add_argument("--key-id", default="", help="a signing key to use over the socket")
    bench.add_argument(
        "--seconds", type=durations.seconds, default=1.0, help="for each figure (1s)"
    )
    bench.add_argument(
        "--certificate-lifetime",
        type=durations.seconds,
        default=86_400.0,
        help="of the mesh, renewed at half (24h)",
    )
    audit = commands.add_parser("audit", help="judge the audit log")
    audits = audit.add_subparsers(dest="audit_command", required=True, metavar="COMMAND")
    verify = audits.add_parser(
        "verify", parents=[client], help="name the first broken entry; exit 79 when there is one"
    )
    verify.add_argument("files", type=Path, nargs="+", metavar="FILE")
    verify.add_argument(
        "--public-key",
        type=Path,
        action="append",
        default=[],
        help="of the checkpoints, PEM; again for each token that signed; else the socket is asked",
    )
    verify.add_argument("--head", default="", help="SEQUENCE:DIGEST that the log has had")
    verify.add_argument("--chain-only", action="store_true", help="do not check signatures")
    audits.add_parser("public-key", parents=[client], help="of the checkpoints, as PEM")


def run(options: argparse.Namespace, client: Client, show: Show) -> int:
    """Do it, show the result, and return the exit code. HsmPluginError when it failed."""
    match options.command:
        case "doctor":
            return _doctor(options, client, show)
        case "bench":
            return _bench(options, show)
        case _:
            return _audit(options, client, show)


def _doctor(options: argparse.Namespace, client: Client, show: Show) -> int:
    checks = Doctor(
        module=options.p11_lib,
        tokens=token_options.named(options),
        pin_file=options.p11_pin_file,
        socket=Path(options.socket),
        client=client,
    ).examine()
    show(diagnosis.as_json(checks), diagnosis.as_text(checks))
    return EXIT_FINDINGS if diagnosis.has_fault(checks) else 0


def _bench(options: argparse.Namespace, show: Show) -> int:
    figures = Bench(
        module=options.p11_lib,
        tokens=token_options.named(options),
        pin_file=options.p11_pin_file,
        state_dir=options.state_dir,
        socket=Path(options.socket),
        key_id=options.key_id,
        seconds=options.seconds,
        lifetime_seconds=options.certificate_lifetime,
    ).run()
    show(figures, bench_command.as_text(figures))
    return 0


def _audit(options: argparse.Namespace, client: Client, show: Show) -> int:
    if options.audit_command == "public-key":
        pem = audit_command.public_key(client)
        show({"public_key": pem}, pem.rstrip())
        return 0
    report = audit_command.Verify(
        files=tuple(options.files),
        public_keys=tuple(options.public_key),
        chain_only=options.chain_only,
        head=options.head,
    ).run(client)
    show(audit_command.as_json(report), audit_command.as_text(report))
    return EXIT_FINDINGS if report.finding else 0
