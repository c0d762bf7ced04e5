"""How many worker processes a bridge has: as the settings say, or one for each core it may use."""

import math
import os
from pathlib import Path

MOST_WORKERS = 32
MOST_BY_ITSELF = 4
"""By then the plugin, one interpreter, is the limit, and each worker takes memory."""

_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


def worker_count(text: str) -> int:
    """Return the number that a setting asks for; ValueError when it is none."""
    if text == "auto":
        return min(cores(), MOST_BY_ITSELF)
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text[:9]) <= MOST_WORKERS:
        raise ValueError(text)
    return int(text)


def cores(cpu_max: Path = _CPU_MAX) -> int:
    """Return how many cores this process may use: its affinity, less where cgroup v2 limits it."""
    mine = len(os.sched_getaffinity(0))
    try:
        quota, period = (float(word) for word in cpu_max.read_text().split())
    except (OSError, ValueError):  # no limit: the first word is `max`
        return mine
    return max(1, min(mine, math.ceil(quota / period)))
