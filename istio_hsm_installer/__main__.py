"""Entry point of `istio-hsm`."""

import sys

from istio_hsm_installer import core_dumps
from istio_hsm_installer.cli import run


def main() -> None:
    """Run the command line and exit with its code."""
    core_dumps.forbid()  # one would hold Vault's token, a PIN or the root key
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
