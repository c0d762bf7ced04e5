"""What a process holds, and whether that grows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_SLACK_FILES = 12
_SLACK_THREADS = 10
"""gRPC's event engine adds threads when it is busy, and keeps some."""
_SLACK_KIB = 24 * 1024
_SLACK_PART = 0.25
_WARM_UP = 0.2
"""The first part of the samples, which does not count."""


@dataclass(frozen=True, slots=True)
class Usage:
    """One sample, taken while nothing was broken."""

    at: float
    resident_kib: int
    threads: int
    files: int | None
    """None: another user's process, or one that hides them."""


def usage_of(pid: int, at: float) -> Usage | None:
    """Return what a process holds now; None when it is gone."""
    process = Path(f"/proc/{pid}")
    try:
        status = dict(
            line.split(":", 1)
            for line in (process / "status").read_text().splitlines()
            if ":" in line
        )
        resident, threads = int(status["VmRSS"].split()[0]), int(status["Threads"])
    except (OSError, KeyError):
        return None
    try:
        files: int | None = len(list((process / "fd").iterdir()))
    except OSError:
        files = None
    return Usage(at, resident, threads, files)


def growth(samples: Sequence[Usage]) -> list[str]:
    """Return in what a process grew over its life beyond the bounds; nothing for a flat one."""
    samples = samples[round(len(samples) * _WARM_UP) :]
    early, late = samples[: len(samples) // 3], samples[-(len(samples) // 3) :]
    if not early or not late:
        return []
    grown = []
    most = max(it.resident_kib for it in early)
    now = min(it.resident_kib for it in late)
    if now > most + _SLACK_KIB and now > most * (1 + _SLACK_PART):
        grown.append(f"memory {most} to {now} KiB")
    if min(it.threads for it in late) > max(it.threads for it in early) + _SLACK_THREADS:
        grown.append("threads")
    counted = [it.files for it in early if it.files is not None]
    later = [it.files for it in late if it.files is not None]
    if counted and later and min(later) > max(counted) + _SLACK_FILES:
        grown.append(f"files {max(counted)} to {min(later)}")
    return grown
