"""Options that name the module, the tokens and the PIN file: of `serve`, `doctor` and `bench`."""

import argparse
from collections.abc import Mapping

from hsm_plugin import config


def parser(env: Mapping[str, str]) -> argparse.ArgumentParser:
    """Return what a command takes that looks for a token."""
    token = argparse.ArgumentParser(add_help=False)
    token.add_argument(
        "--p11-lib", default=env.get("P11_LIB", ""), help="the PKCS#11 module (P11_LIB)"
    )
    token.add_argument(
        "--p11-label",
        action="append",
        help="the token's label or PKCS#11 URI (P11_TOKEN); several: with a comma between or by "
        "repeating it, the preferred one first",
    )
    token.add_argument(
        "--p11-pin-file",
        default=env.get("P11_PIN_FILE", ""),
        help="the file that holds the PIN (P11_PIN_FILE); awaited, and read again when changed",
    )
    token.add_argument(
        "--state-dir",
        default=env.get("HSM_PLUGIN_STATE_DIR", ""),
        help="where PIN attempts are remembered (HSM_PLUGIN_STATE_DIR; the socket's folder)",
    )
    return token


def named(options: argparse.Namespace) -> str:
    """Return the tokens as they were named, the preferred one first, with commas between."""
    return ",".join(options.p11_label or [config.environment().get("P11_TOKEN", "")])
