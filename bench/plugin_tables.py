"""The tables of docs/performance.md about the plugin."""

from collections.abc import Iterable, Mapping
from typing import Any

from bench.plugin_calls import BATCH, SIGN_BATCH, SIGN_P256, SIGN_RSA

_RAW_THREADS = "16"


def tables(results: Mapping[str, Any]) -> Iterable[str]:
    """Yield the lines of those tables for which there are results."""
    if "plugin" in results:
        yield from _calls(results["plugin"])
    if "plugin" in results and "raw" in results:
        yield from _beside_the_token(results["plugin"], results["raw"])
    if "seldom" in results:
        yield from _seldom(results["seldom"])
    if "objects" in results:
        yield from _objects(results["objects"])
    if "startup" in results:
        yield f"From start to serving: {results['startup']['seconds']} s."
        yield ""
    if "memory" in results:
        found = results["memory"]
        first, *_, last = found["resident_mib"]
        yield (
            f"Memory of server and worker: {first} MiB warm, {last} MiB after "
            f"{found['calls']:,} calls."
        )
        yield ""
    if "client" in results:
        ceiling = results["client"]["h2load_per_second"]
        yield f"The load client's own ceiling, against a server in C: {ceiling:,}/s."
        yield ""


def _calls(found: Mapping[str, Any]) -> Iterable[str]:
    yield (
        "| call | a second, 16 at once | echo of the same bytes | of the echo | p50, p99 "
        "| alone, p50 | of the echo alone | processor time |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for name, figure in found.items():
        yield (
            f"| {name} | {figure['per_second']} | {figure['echo_per_second']} "
            f"| {figure['of_echo']:.2f} | {figure['p50_ms']}, {figure['p99_ms']} ms "
            f"| {figure['alone_p50_ms']} ms | {figure['alone_of_echo']:.2f} "
            f"| {figure['cpu_us']} µs |"
        )
    yield ""


def _beside_the_token(found: Mapping[str, Any], raw: Mapping[str, Any]) -> Iterable[str]:
    yield (
        f"| signatures a second | plugin | the bare token, {_RAW_THREADS} threads | of that "
        "| python-pkcs11, 1 thread | of that |"
    )
    yield "|---|---|---|---|---|---|"
    for title, call, each, kind in (
        ("RSA-2048, Sign", SIGN_RSA, 1, "RSA-2048"),
        ("P-256, Sign", SIGN_P256, 1, "P-256"),
        (f"P-256, SignBatch of {BATCH}", SIGN_BATCH, BATCH, "P-256"),
    ):
        rate = found[call]["per_second"] * each
        bare, usual = raw[kind][_RAW_THREADS], raw[f"{kind}, python-pkcs11"]["1"]
        yield (f"| {title} | {rate} | {bare} | {rate / bare:.2f} | {usual} | {rate / usual:.2f} |")
    yield ""


def _seldom(found: Mapping[str, Any]) -> Iterable[str]:
    yield "| call made seldom | a second, 16 at once | p50, p99 | alone, p50 | processor time |"
    yield "|---|---|---|---|---|"
    for name, figure in found.items():
        yield (
            f"| {name} | {figure['per_second']} | {figure['p50_ms']}, {figure['p99_ms']} ms "
            f"| {figure['alone_p50_ms']} ms | {figure['cpu_us']} µs |"
        )
    yield ""


def _objects(found: Mapping[str, Any]) -> Iterable[str]:
    names = [name for name in next(iter(found.values())) if name != "start_to_serving_seconds"]
    yield f"| further keys in the token | start to serving | {' | '.join(names)} |"
    yield f"|---|---|{'---|' * len(names)}"
    for count, figures in found.items():
        rates = " | ".join(f"{figures[name]}/s" for name in names)
        yield f"| {int(count):,} | {figures['start_to_serving_seconds']} s | {rates} |"
    yield ""


def sessions(results: Mapping[str, Any]) -> Iterable[str]:
    """Yield the table of signatures a second by sessions, for each delay of a PKCS#11 call."""
    if "latency" not in results:
        return
    found = results["latency"]
    delays = list(next(iter(found.values())))
    columns = [(call, delay) for call in (SIGN_P256, SIGN_RSA) for delay in delays]
    yield f"| `--sessions` | {' | '.join(f'{call}, {delay}' for call, delay in columns)} |"
    yield f"|---|{'---|' * len(columns)}"
    for count, figures in found.items():
        yield f"| {count} | {' | '.join(f'{figures[delay][call]:,}' for call, delay in columns)} |"
    yield ""
