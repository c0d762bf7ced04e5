"""A load client: so many calls at once for so long, latencies kept."""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Load:
    """What one run of a load gave."""

    per_second: float
    p50_ms: float
    p99_ms: float


async def measure(
    call: Callable[[], Awaitable[object]], *, concurrent: int, seconds: float
) -> Load:
    """Return the rate and latencies of `concurrent` callers that call again and again."""
    latencies: list[float] = []
    started = time.perf_counter()
    end = started + seconds

    async def caller() -> None:
        while (before := time.perf_counter()) < end:
            await call()
            latencies.append(time.perf_counter() - before)

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrent):
            group.create_task(caller())
    took = time.perf_counter() - started
    latencies.sort()
    return Load(
        per_second=len(latencies) / took,
        p50_ms=latencies[len(latencies) // 2] * 1e3,
        p99_ms=latencies[len(latencies) * 99 // 100] * 1e3,
    )


def median_of(runs: list[Load]) -> Load:
    """Return the medians, figure by figure."""
    return Load(
        per_second=statistics.median(run.per_second for run in runs),
        p50_ms=statistics.median(run.p50_ms for run in runs),
        p99_ms=statistics.median(run.p99_ms for run in runs),
    )
