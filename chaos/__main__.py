"""`make soak`: the whole system under load while a seeded schedule of faults strikes it.

Ends by itself; every process that it started ends with it. Exit code 0 when all that must hold
held, 1 when something did not or the run could not be carried out.
"""

import argparse
import json
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from chaos import assembly, mounts, site
from chaos.conductor import Conductor
from chaos.faults import Fault
from chaos.report import Finding, Strike, Summary, page, rows
from chaos.schedule import schedule
from chaos.sidecars import Load, Tally
from chaos.verdict import judge
from chaos.waiting import ChaosError, wait_until
from demo.processes import DemoError
from tests.support.kube_binaries import KubeBinariesError
from tests.support.kube_process import ChildError

_MOST_MINUTES = 24 * 60
_MOST_SIDECARS = 64
_PAGE = Path(__file__).parent.parent / "docs" / "chaos.md"
_MIB_EACH_MINUTE = 4
_DISK = "it needs root, to mount a small file system"


def main() -> int:
    """Return the exit code."""
    options = _options()
    signal.signal(signal.SIGTERM, _interrupt)
    is_root = mounts.is_isolated()
    skipped = {} if is_root else {Fault.DISK_FULL: _DISK}
    faults = [it for it in options.only or Fault if it not in skipped]
    if not faults:
        sys.stderr.write(f"error: nothing to do: {_DISK}\n")
        return 1
    try:
        with _folders(is_root, options.minutes) as folders:
            findings = _run(options, faults, skipped, *folders)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; all processes were ended and all files removed\n")
        return 130
    except (ChaosError, DemoError, ChildError, KubeBinariesError, RuntimeError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0 if all(it.holds for it in findings) else 1


def _run(
    options: argparse.Namespace,
    faults: Sequence[Fault],
    skipped: dict[Fault, str],
    folder: Path,
    memory: Path,
    ledgers: Path,
) -> list[Finding]:
    tally, stop = Tally(), threading.Event()
    sys.stderr.write(f"seed {options.seed}; starting the system ...\n")
    with assembly.running(folder, memory, ledgers, options.replicas) as it:
        endpoints = it.endpoints()
        endpoints.start()
        load = Load(
            site.sidecars(it, options.sidecars, endpoints, tally, options.pause, stop), stop
        )
        conductor = Conductor(it, endpoints, tally)
        began = time.monotonic()
        load.start()
        wait_until(lambda: bool(tally.received), lambda: f"a certificate; {tally.lost}")
        try:
            conductor.run(schedule(options.seed, faults, options.replicas), 60 * options.minutes)
        finally:
            seconds = time.monotonic() - began
            load.stop()
            endpoints.stop()
        findings = judge(it, conductor, tally)
        if options.keep_logs or not all(found.holds for found in findings):
            _keep(options.out, it)
    strikes = [
        Strike(entry.name, entry.statuses, entry.longest_wait, entry.recovery)
        for entry in conductor.outcomes
    ]
    table = rows(strikes)
    summary = Summary(
        command=f"python -m chaos --minutes {options.minutes:g} --seed {options.seed}",
        seed=options.seed,
        seconds=round(seconds, 1),
        replicas=options.replicas,
        sidecars=options.sidecars,
        calls=len(tally.attempts),
        requests=len(tally.received),
        skipped={fault.title: why for fault, why in skipped.items()},
    )
    document = {
        **asdict(summary),
        "invariants": [asdict(found) for found in findings],
        "faults": [row.as_json() for row in table],
        "strokes": [
            {"fault": strike.name, "recovery_seconds": strike.recovery} for strike in strikes
        ],
    }
    text = page(summary, table, findings)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.json").write_text(json.dumps(document, indent=2) + "\n")
    (options.out / "chaos.md").write_text(text)
    if options.page:
        _PAGE.write_text(text)
    sys.stdout.write(text)
    return findings


def _keep(out: Path, it: site.Site) -> None:
    """Keep the logs, as of a run in which something did not hold."""
    logs = out / "logs"
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir(parents=True)
    for process in it.ours:
        shutil.copy(process.log, logs)
    for path in it.ledgers.iterdir():
        shutil.copy(path, logs)
    (logs / "cluster.log").write_text(it.kube.logs(1000))


@contextmanager
def _folders(is_root: bool, minutes: float) -> Iterator[tuple[Path, Path, Path]]:  # noqa: FBT001 - one fact
    """Yield a folder on the disk, one in memory, and one for the logs that can be full."""
    folder = Path(tempfile.mkdtemp(prefix="istio-hsm-chaos-"))
    memory = Path(tempfile.mkdtemp(prefix="istio-hsm-chaos-", dir="/dev/shm"))
    try:
        ledgers = folder / "ledgers"
        ledgers.mkdir()
        size = f"{64 + round(_MIB_EACH_MINUTE * minutes)}m"
        if is_root and not mounts.mount_memory(ledgers, size):
            raise ChaosError(f"cannot mount a file system on {ledgers}")
        yield folder, memory, ledgers
    finally:
        if is_root:
            mounts.unmount(ledgers)
        shutil.rmtree(memory, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("--minutes", type=_minutes, default=10.0, help="how long (10)")
    parser.add_argument("--seed", type=int, help="of the schedule; a random one when left out")
    parser.add_argument(
        "--out", type=Path, default=Path("chaos-results"), help="folder for results.json, chaos.md"
    )
    parser.add_argument("--keep-logs", action="store_true", help="also when all held")
    parser.add_argument("--page", action="store_true", help="write docs/chaos.md, too")
    parser.add_argument("--replicas", type=int, default=3, choices=range(1, 6), help="bridges (3)")
    parser.add_argument("--sidecars", type=_sidecars, default=8, help="workloads that ask (8)")
    parser.add_argument(
        "--pause", type=float, default=0.4, help="seconds between a sidecar's requests (0.4)"
    )
    parser.add_argument(
        "--only",
        type=_fault,
        action="append",
        metavar="FAULT",
        help=f"some of {', '.join(_word(it) for it in Fault)}; repeat it",
    )
    options = parser.parse_args()
    if options.seed is None:
        options.seed = secrets.randbelow(1_000_000)
    return options


def _minutes(text: str) -> float:
    value = float(text)
    if not 0 < value <= _MOST_MINUTES:
        raise argparse.ArgumentTypeError(f"0 to {_MOST_MINUTES}")
    return value


def _sidecars(text: str) -> int:
    value = int(text)
    if not 0 < value <= _MOST_SIDECARS:
        raise argparse.ArgumentTypeError(f"1 to {_MOST_SIDECARS}")
    return value


def _word(fault: Fault) -> str:
    return fault.name.lower().replace("_", "-")


def _fault(text: str) -> Fault:
    found = {_word(it): it for it in Fault}.get(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"unknown: {text}")
    return found


if __name__ == "__main__":
    sys.exit(main())
