"""Starts what the command line asks for: the daemon, one delivery, or a probe's question."""

import argparse
import asyncio
import ctypes
import os
import resource
import sys

from vault_client.config import load, load_logging
from vault_client.endpoints import NotReadyError, ask_ready
from vault_client.errors import Cause, DeliveryError, VaultClientError
from vault_client.files import read_published
from vault_client.logs import configure
from vault_client.settings import Config

EXIT_OK, EXIT_NOT_READY, EXIT_CONFIG = 0, 1, 78
# After sysexits.h: 65 data, 66 no input, 69 unavailable, 70 internal, 73 cannot create,
# 76 protocol, 77 refused.
_EXIT_BY_CAUSE = {
    Cause.FORBIDDEN: 77,
    Cause.REJECTED: 77,
    Cause.CREDENTIALS: 77,
    Cause.MISSING: 66,
    Cause.DELETED: 66,
    Cause.DESTROYED: 66,
    Cause.INVALID: 65,
    Cause.TRIAL: 65,
    Cause.SEALED: 69,
    Cause.RATE_LIMITED: 69,
    Cause.SERVER_ERROR: 69,
    Cause.TIMEOUT: 69,
    Cause.UNREACHABLE: 69,
    Cause.TLS: 76,
    Cause.TARGET: 73,
    Cause.INTERNAL: 70,
}
_PR_SET_DUMPABLE = 4


def main() -> None:
    """Run the command and exit with its code."""
    options = _parser().parse_args()
    try:
        config = load()
        if options.command == "healthcheck":
            sys.exit(_healthcheck(config))
        _harden()
        configure(load_logging())
        # The probe, run every few seconds, must not pay for the import of hvac.
        from vault_client.daemon import deliver  # noqa: PLC0415

        asyncio.run(deliver(config, once=options.once))
    except VaultClientError as error:
        sys.exit(_report(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vault-client",
        description="Delivers an HSM's credentials from Vault into a shared memory volume. "
        "Settings come from the environment: see docs/vault-client.md.",
    )
    parser.add_argument(
        "command",
        nargs="?",
        choices=["run", "healthcheck"],
        default="run",
        help="run: deliver and keep fresh (default); healthcheck: 0 if a set is in place",
    )
    parser.add_argument(
        "--once", action="store_true", help="deliver one set and exit, as an init container"
    )
    return parser


def _healthcheck(config: Config) -> int:
    if config.http is not None:
        sys.stdout.write(f"{ask_ready(config.http)}\n")
        return EXIT_OK
    published = read_published(config.output)
    if published is None:
        raise NotReadyError(
            f"no whole set is in place in {config.output}", hint="see the daemon's log"
        )
    sys.stdout.write(f"in place: {published.generation}\n")
    return EXIT_OK


def _report(error: VaultClientError) -> int:
    """Write the cause and the hint, a line each, and return the exit code for them."""
    sys.stderr.write(f"error: {error}\nhint: {error.hint}\n")
    if isinstance(error, DeliveryError):
        return _EXIT_BY_CAUSE[error.cause]
    return EXIT_NOT_READY if isinstance(error, NotReadyError) else EXIT_CONFIG


def _harden() -> None:
    """Close the ways by which memory or fresh files could be read by others."""
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


if __name__ == "__main__":
    main()
