"""Secrets as a directory: `<folder>/<Secret's name>/<key>`, as the CA bridge keeps them."""

from pathlib import Path

from istio_hsm_installer.errors import InputError
from istio_hsm_installer.files import write_file

CHAIN_SECRET = "istio-ca-cert"  # noqa: S105 - a Secret's name
CHAIN_KEY = "cert-chain.pem"
CSR_SECRET = "istio-ca-cert-csr"  # noqa: S105 - a Secret's name
_HINT = "name the bridge's BRIDGE_STORE_DIR, and check its mode"


def write_chain(folder: Path, pem: bytes) -> Path:
    """Return the path of the chain, which appears whole or not at all."""
    target = folder / CHAIN_SECRET / CHAIN_KEY
    try:
        target.parent.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error.strerror}", hint=_HINT) from None
    write_file(target, pem, mode=0o400, hint=_HINT)
    return target
