"""Secrets as a directory: `<folder>/<Secret's name>/<key>`, as the CA bridge keeps them."""

import os
import tempfile
from pathlib import Path

from istio_hsm_installer.errors import InputError

CHAIN_SECRET = "istio-ca-cert"  # noqa: S105 - a Secret's name
CHAIN_KEY = "cert-chain.pem"


def write_chain(folder: Path, pem: bytes) -> Path:
    """Return the path of the chain, which appears whole or not at all."""
    target = folder / CHAIN_SECRET / CHAIN_KEY
    try:
        target.parent.mkdir(mode=0o700, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".cert-chain-", dir=target.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o400)
        Path(name).replace(target)
    except OSError as error:
        raise InputError(
            f"{target} cannot be written: {error.strerror}",
            hint="name the bridge's BRIDGE_STORE_DIR, and check its mode",
        ) from None
    return target
