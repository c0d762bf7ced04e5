"""Entry point of `hsm-plugin` and of its drop-in name `k8s-kms-plugin`."""

import sys

from hsm_plugin.cli import run


def main() -> None:
    """Run the command line and exit with its code."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
