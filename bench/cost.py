"""Processor time, from /proc."""

import os
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """Return what a process and its children have spent so far, in user and kernel mode."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return sum(own_cpu_seconds(process) for process in (pid, *map(int, children)))


def own_cpu_seconds(pid: int) -> float:
    """Return the same of the process alone."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS
