"""The PIN, read from its file each time it is needed and kept nowhere."""

import hmac
from pathlib import Path

from hsm_plugin.errors import PinRefusedError

_MAX_PIN_BYTES = 256


def read_pin(path: Path) -> str:
    """Return the PIN without its final newline; PinRefusedError when the file holds none."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_PIN_BYTES + 2)
    except OSError as error:
        raise PinRefusedError(
            f"the PIN file {path} cannot be read: {error.strerror}",
            hint="it is awaited; check P11_PIN_FILE, its mode and the Vault client beside",
        ) from None
    pin = content.removesuffix(b"\n").removesuffix(b"\r")
    if not pin or len(pin) > _MAX_PIN_BYTES or b"\n" in pin or b"\0" in pin:
        raise PinRefusedError(
            f"the PIN file {path} does not hold one line of 1 to {_MAX_PIN_BYTES} bytes",
            hint="write the PIN alone into it",
        )
    try:
        return pin.decode()
    except UnicodeDecodeError:
        raise PinRefusedError(f"the PIN file {path} is not UTF-8") from None


def same_pin(first: Path, second: Path) -> bool:
    """Return whether both files hold the same PIN; PinRefusedError when one holds none."""
    return hmac.compare_digest(read_pin(first).encode(), read_pin(second).encode())
