"""The tables of docs/performance.md about the bridge."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

_GOALS = {
    ("rsa-2048", "token"): 1000,
    ("ecdsa-p256", "token"): 1500,
    ("rsa-2048", "certificate"): 1100,
    ("ecdsa-p256", "certificate"): 3100,
}
_BUSIEST = "64"


def tables(results: Mapping[str, Any]) -> Iterable[str]:
    """Yield the lines of those tables for which there are results."""
    cores = os.cpu_count() or 1
    if "ca" in results:
        yield from _rates(results["ca"], cores)
    if "ca_workers" in results:
        yield from _by_workers(results["ca_workers"])
    if "ca_steps" in results:
        yield from _steps(results["ca_steps"])
    if "raw" in results:
        yield from _bare(results["raw"], cores)
    if "herd" in results:
        yield from _herd(results["herd"])


def _rates(found: dict[str, Any], cores: int) -> Iterable[str]:
    yield (
        "| CA key, caller | a second at 8 / 16 / 64 at once | of the goal | p50, p99 at 8 "
        "| bridge | plugin | bound: all cores | bound: one interpreter |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    empty = found["ecdsa-p256"]["empty"][_BUSIEST]
    for (algorithm, way), goal in _GOALS.items():
        loads = found[algorithm][way]
        rates = [load["per_second"] for load in loads.values()]
        alone, busy = loads["8"], loads[_BUSIEST]
        bridge, plugin = busy["bridge_us"], busy["plugin_us"]
        yield (
            f"| {algorithm}, {way} | {' / '.join(f'{rate:.0f}' for rate in rates)} "
            f"| {max(rates) / goal:.2f} | {alone['p50_ms']}, {alone['p99_ms']} ms "
            f"| {bridge} µs | {plugin} µs | {cores * 1e6 / (bridge + plugin):.0f}/s "
            f"| {1e6 / bridge:.0f}/s |"
        )
    yield ""
    yield (
        f"An empty call (health) the same way: {empty['per_second']}/s at {_BUSIEST} at once, "
        f"{empty['bridge_us']} µs of the bridge."
    )
    yield ""


def _by_workers(found: dict[str, dict[str, dict[str, dict[str, float]]]]) -> Iterable[str]:
    yield (
        "| CA key, caller; 8 connections | `CA_WORKERS=1` | p99 | bridge, plugin "
        "| `CA_WORKERS=2` | p99 | bridge, plugin | of the goal |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for (algorithm, way), goal in _GOALS.items():
        by_count = found[algorithm][way].values()
        cells = (
            f"{it['per_second']}/s | {it['p99_ms']} ms | {it['bridge_us']}, {it['plugin_us']} µs"
            for it in by_count
        )
        best = max(it["per_second"] for it in by_count)
        yield f"| {algorithm}, {way} | {' | '.join(cells)} | {best / goal:.2f} |"
    yield ""


def _steps(found: dict[str, int]) -> Iterable[str]:
    yield from ("| step, alone | processor time |", "|---|---|")
    yield from (f"| {step} | {micros} µs |" for step, micros in found.items())
    yield ""


def _bare(found: dict[str, dict[str, float]], cores: int) -> Iterable[str]:
    yield from ("| the bare token signs | on 1 thread | on as many as cores |", "|---|---|---|")
    for kind in ("RSA-2048", "P-256"):
        yield f"| {kind} | {found[kind]['1']}/s | {found[kind].get(str(cores), '?')}/s |"
    yield ""


def _herd(found: dict[str, Any]) -> Iterable[str]:
    again = ", ".join(f"{count} by {status}" for status, count in found["tried_again"].items())
    yield (
        f"Herd: of {found['sidecars']} sidecars {found['served']} served, "
        f"{sum(found['failed_for_good'].values())} failed for good; half of them after "
        f"{found['median_s']} s, the last after {found['last_s']} s; "
        f"tries that were followed by another: {again or 'none'}; "
        f"{found['cpu_us']} µs of bridge and plugin each; peak memory of the bridge "
        f"{found['bridge_peak_mib']} MiB."
    )
    yield ""
