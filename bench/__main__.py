"""`make bench`: the measurements on SoftHSM2, side by side in one run, as one JSON document.

Figures are medians of several runs on this machine; compare ratios, not machines. They say
nothing about a Luna.
"""

import json
import sys
import tempfile
from pathlib import Path

from bench import plugin


def main() -> int:
    """Return the exit code."""
    with tempfile.TemporaryDirectory() as folder:
        result = {"token": "SoftHSM2", "plugin": plugin.run(Path(folder))}
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
