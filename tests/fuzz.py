"""`make fuzz MINUTES=10`: the tests that try inputs at random, round after round, until time is up.

Each round has another seed and ten times the examples of an ordinary run. It ends at the first
input that breaks something, with the seed; that input is then a new file of tests/corpus.
"""

import argparse
import os
import re
import secrets
import subprocess
import sys
import time
from pathlib import Path

_ROOT = Path(__file__).parent.parent
FILES = (
    *("tests/unit/test_fuzz.py", "tests/unit/test_state_fuzz.py"),
    *("tests/unit/test_log_mutations.py", "tests/unit/test_pkcs11_uri_fuzz.py"),
)
_GENERATED = re.compile(r"(\d+) passing, ")


def round_of(seed: int) -> tuple[int, int, str]:
    """Return exit status, inputs tried, and output of one round."""
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--timeout", "0"),
        *(f"--hypothesis-seed={seed}", "--hypothesis-show-statistics", *FILES),
    ]
    environment = os.environ | {"HYPOTHESIS_PROFILE": "round"}
    done = subprocess.run(  # noqa: PLW1510 - its status is looked at
        command, cwd=_ROOT, env=environment, capture_output=True, text=True
    )
    return done.returncode, sum(map(int, _GENERATED.findall(done.stdout))), done.stdout


def main() -> int:
    """Return 0 when the time is up and nothing broke."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--minutes", type=float, default=10)
    minutes: float = arguments.parse_args().minutes
    started, rounds, inputs = time.monotonic(), 0, 0
    while True:
        seed = secrets.randbelow(1 << 32)
        status, tried, output = round_of(seed)
        rounds, inputs = rounds + 1, inputs + tried
        spent = time.monotonic() - started
        print(f"round {rounds}: {inputs} inputs in {spent / 60:.1f} min", flush=True)  # noqa: T201
        if status:
            print(f"{output}\nbroken with --hypothesis-seed={seed}")  # noqa: T201
            return status
        if spent >= minutes * 60:
            return 0


if __name__ == "__main__":
    sys.exit(main())
