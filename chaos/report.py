"""The results as JSON and as a page, from what was seen."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from chaos.faults import Fault

Json = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Summary:
    """A run in a few words and figures."""

    command: str
    seed: int
    seconds: float
    replicas: int
    sidecars: int
    calls: int
    """Attempts."""
    requests: int
    """Certificates that sidecars got."""
    skipped: Mapping[str, str]
    """Faults that cannot be done here, and why."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One invariant."""

    invariant: str
    holds: bool
    told: str


@dataclass(frozen=True, slots=True)
class Strike:
    """One stroke: what it was, what clients saw, how long until all was sound."""

    name: str
    statuses: Counter[str]
    longest_wait: float
    recovery: float | None


@dataclass(frozen=True, slots=True)
class Row:
    """All strokes of one name."""

    name: str
    times: int
    calls: int
    failed: Mapping[str, int]
    longest_wait: float
    median: float | None
    """Seconds to recovery; None: it once did not."""
    worst: float | None

    def as_json(self) -> Json:
        """Return it for the results."""
        return {
            "fault": self.name,
            "times": self.times,
            "calls": self.calls,
            "failed": dict(self.failed),
            "longest_wait_seconds": round(self.longest_wait, 2),
            "recovery_median_seconds": None if self.median is None else round(self.median, 2),
            "recovery_worst_seconds": None if self.worst is None else round(self.worst, 2),
        }

    def as_markdown(self) -> str:
        """Return it as a line of the table."""
        seen = ", ".join(f"{count} {status}" for status, count in sorted(self.failed.items()))
        told = f"{seen} of {self.calls} calls" if seen else f"nothing ({self.calls} calls)"
        recovery = (
            "never | never"
            if self.median is None or self.worst is None
            else f"{self.median:.1f} | {self.worst:.1f}"
        )
        return f"| {self.name} | {self.times} | {told} | {self.longest_wait:.1f} | {recovery} |"


def rows(strikes: Sequence[Strike]) -> list[Row]:
    """Return a row for each fault in the catalogue's order, then those of two at once."""
    order = {fault.title: number for number, fault in enumerate(Fault)}
    names = sorted({it.name for it in strikes}, key=lambda it: (order.get(it, len(order)), it))
    return [_row(name, [it for it in strikes if it.name == name]) for name in names]


def _row(name: str, strikes: Sequence[Strike]) -> Row:
    statuses: Counter[str] = sum((it.statuses for it in strikes), Counter())
    recoveries = [it.recovery for it in strikes if it.recovery is not None]
    is_whole = len(recoveries) == len(strikes)
    return Row(
        name=name,
        times=len(strikes),
        calls=statuses.total(),
        failed={status: count for status, count in statuses.items() if status != "OK"},
        longest_wait=max(it.longest_wait for it in strikes),
        median=statistics.median(recoveries) if is_whole else None,
        worst=max(recoveries) if is_whole else None,
    )


_HEAD = """# Chaos: faults of the whole system, under load

Written by `{command} --page`. On one machine: etcd and kube-apiserver, OpenBao, SoftHSM2 behind a
PKCS#11 module that fails on command, the vault client, the plugin and {replicas} replicas of the
bridge, each started again when it ends; {sidecars} sidecars that ask as Istio's agents do and check
every answer. A schedule that follows from the seed does one fault after another, later also two at
once, and each time waits until every part says that it is sound, every replica issues, and no call
has failed for a second. Try it with a seed of your own: `make soak`, `python -m chaos --help`.

The times are this machine's, with everything on it at once, and SoftHSM2's: a Luna adds those of
its own logins. A call is one attempt; an agent whose call failed comes again, and the longest wait
is what a sidecar felt of it. Recovery counts from the fault's end, or from its begin when nobody
ends it. A replica counts as sound when its health says so, which it looks at every few seconds.
"""


def page(summary: Summary, table: Sequence[Row], findings: Sequence[Finding]) -> str:
    """Return docs/chaos.md."""
    lines = [
        _HEAD.format(command=summary.command, replicas=summary.replicas, sidecars=summary.sidecars),
        f"{summary.requests} certificates in {summary.seconds:.0f} s, {summary.calls} calls.",
        "",
        "## What held",
        "",
        "| | Invariant | |",
        "|---|---|---|",
        *(
            f"| {'yes' if it.holds else '**no**'} | {it.invariant} | {_cell(it.told)} |"
            for it in findings
        ),
        "",
        "## Each fault",
        "",
        "| Fault | Times | Calls that failed | Longest wait, s | Recovery, s: median | worst |",
        "|---|---|---|---|---|---|",
        *(row.as_markdown() for row in table),
        "",
    ]
    if summary.skipped:
        skipped = "; ".join(f"{name} ({why})" for name, why in summary.skipped.items())
        lines += [f"Not done: {skipped}.", ""]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
