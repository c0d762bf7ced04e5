"""`python -m tests.faults.table`: runs each fault and writes docs/faults.md."""

import sys
import tempfile
from pathlib import Path

from tests.faults.clients import ARGUMENTS, Observation, make_key, observe
from tests.faults.scenarios import FAULTS, HANG_LIMIT_SECONDS, Fault
from tests.support import plugin as plugins
from tests.support.faults import make_faulty
from tests.support.softhsm import make_token

_PAGE = Path(__file__).parents[2] / "docs" / "faults.md"
_HEAD = f"""# Faults of an HSM, and what the plugin makes of them

Written by `python -m tests.faults.table`: SoftHSM2 behind a PKCS#11 module that fails on command
(tests/faults/faulty_module.c), four clients that sign all the time with a deadline of 1 s, and a
plugin with `--hang-limit {HANG_LIMIT_SECONDS:g}s` (the default is 10 s). The last column is the
time from the end of the fault, or from its begin when nobody ends it, to the last call that
failed. The times are this machine's; a real HSM adds those of its own logins.

| Fault | What clients see | Slowest call | Seconds to recovery |
|---|---|---|---|
"""
_FOOT = """
Calls that the token cannot answer fail at once with UNAVAILABLE, the reason, and
`grpc-retry-pushback-ms`; health says NOT_SERVING meanwhile. A wrong PIN reaches the token once,
whatever happens afterwards: see tests/faults/test_pin.py.
"""


def _seen(observation: Observation) -> str:
    total = sum(observation.statuses.values())
    if not observation.failures:
        return f"nothing ({total} calls, all answered)"
    parts = [f"{count} {status}" for status, count in sorted(observation.failures.items())]
    return f"{', '.join(parts)} of {total} calls"


def _row(fault: Fault) -> str:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        hsm = make_faulty(make_token(folder / "token"))
        with plugins.running(
            hsm.hsm, folder / "run", arguments=ARGUMENTS, environment=hsm.environment()
        ) as plugin:
            with plugin.signing() as stub:
                make_key(stub)
            observation, seconds = observe(plugin, hsm, fault)
    slowest = f"{observation.slowest_seconds:.2f} s"
    return f"| {fault.name} | {_seen(observation)} | {slowest} | {seconds:.1f} |"


def main() -> int:
    """Return the exit code."""
    rows = []
    for fault in FAULTS:
        rows.append(_row(fault))
        sys.stderr.write(rows[-1] + "\n")
    _PAGE.write_text(_HEAD + "\n".join(rows) + "\n" + _FOOT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
