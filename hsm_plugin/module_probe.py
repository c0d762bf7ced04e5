"""A process of its own that loads the PKCS#11 module and tells what it offers; it knows no PIN.

A vendor's module may hang or crash, so `doctor` never loads it itself.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from hsm_plugin.cryptoki import (
    CKF_USER_PIN_COUNT_LOW,
    CKF_USER_PIN_FINAL_TRY,
    CKF_USER_PIN_LOCKED,
    Cryptoki,
    CryptokiError,
)
from hsm_plugin.errors import HsmPluginError, HsmUnavailableError, ModuleError
from hsm_plugin.pkcs11_store_constants import Mechanism

_MAX_OUTPUT_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class SeenToken:
    """A token, as everybody may see it who reaches the module."""

    slot: int
    label: str
    serial: str
    manufacturer: str
    model: str
    max_sessions: int | None
    mechanisms: list[str]
    """Those of ours that it offers."""
    pin_flags: list[str]


def probe(module: str, seconds: float) -> list[SeenToken]:
    """Return the tokens behind a module.

    ModuleError when it cannot be loaded, HsmUnavailableError when it fails, crashes or hangs.
    """
    command = [sys.executable, "-m", "hsm_plugin.module_probe", module]
    try:
        done = subprocess.run(command, capture_output=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise HsmUnavailableError(
            f"the PKCS#11 module hangs: no answer within {seconds:g} s",
            hint="check the HSM's network and the vendor's client",
        ) from None
    try:
        told = json.loads(done.stdout[:_MAX_OUTPUT_BYTES])
        if "error" in told:
            kind = ModuleError if told["load"] else HsmUnavailableError
            raise kind(told["error"], hint=told["hint"])
        return [SeenToken(**token) for token in told["tokens"]]
    except (ValueError, KeyError, TypeError):
        raise HsmUnavailableError(
            f"the PKCS#11 module ended its process with exit code {done.returncode}",
            hint="see the vendor's log; a module of another architecture may crash like this",
        ) from None


def _look(module: str) -> list[SeenToken]:
    cryptoki = Cryptoki(module)
    cryptoki.restart()
    tokens = []
    for slot in cryptoki.slots():
        info = cryptoki.token_info(slot)
        offered = cryptoki.mechanisms(slot)
        flags = {
            "count_low": CKF_USER_PIN_COUNT_LOW,
            "final_try": CKF_USER_PIN_FINAL_TRY,
            "locked": CKF_USER_PIN_LOCKED,
        }
        tokens.append(
            SeenToken(
                slot=slot,
                label=info.label,
                serial=info.serial,
                manufacturer=info.manufacturer,
                model=info.model,
                max_sessions=info.max_sessions,
                mechanisms=[it.name for it in Mechanism if it in offered],
                pin_flags=[name for name, flag in flags.items() if info.flags & flag],
            )
        )
    cryptoki.stop()
    return tokens


def main(arguments: Sequence[str]) -> None:
    """Write what was seen, or the error, to standard output as JSON."""
    try:
        told: dict[str, object] = {"tokens": [asdict(token) for token in _look(arguments[0])]}
    except HsmPluginError as error:
        told = {"error": str(error), "hint": error.hint, "load": isinstance(error, ModuleError)}
    except CryptokiError as error:
        hint = "check the HSM and its client"
        told = {"error": f"the PKCS#11 module failed: {error}", "hint": hint, "load": False}
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1:])
