"""`python -m bench.seen_cost`: what metrics and the audit log cost, in one run, as JSON.

One plugin whose metrics are off, one that is scraped each second, one whose audit log holds up
answers (refuse) and one whose log does not (drop), called in turn. Rates depend on what else the
machine does; the processor time of the server for each call is steadier.
"""

import json
import statistics
import sys
import tempfile
import threading
import urllib.request
from contextlib import ExitStack
from pathlib import Path

from bench.cost import own_cpu_seconds
from bench.h2load import Call, load
from bench.plugin_calls import SIGN_P256
from bench.serving import CONCURRENT, Server, prepared
from tests.support.plugin import Plugin, running
from tests.support.softhsm import make_token

ROUNDS = 5
SECONDS = 1.0
_PORT = 19464
_CALLS = ("AuthenticatedEncrypt", SIGN_P256)

Figures = dict[str, float]


def _measure(plugins: dict[str, Plugin]) -> dict[str, dict[str, Figures]]:
    """Return call -> plugin -> medians."""
    calls = {name: prepared(plugin) for name, plugin in plugins.items()}
    runs: dict[tuple[str, str], list[tuple[float, float, float, float]]] = {}
    for _ in range(ROUNDS):
        for call in _CALLS:
            for name, plugin in plugins.items():
                runs.setdefault((call, name), []).append(_run(plugin, calls[name][call]))
    result: dict[str, dict[str, Figures]] = {}
    for (call, name), kept in runs.items():
        rate, at_16, alone, each = (statistics.median(run) for run in zip(*kept, strict=True))
        result.setdefault(call, {})[name] = {
            "per_second_at_16": round(rate),
            "p50_ms_at_16": round(at_16, 2),
            "p50_ms_alone": round(alone, 2),
            "server_processor_us_a_call": round(each),
        }
    return result


def _run(plugin: Plugin, call: Call) -> tuple[float, float, float, float]:
    """Return rate and latency of many at once, latency alone, and processor time in microseconds.

    The time is the server process's alone: what is seen of the calls, it sees.
    """
    target = Server.of(plugin).target
    before = own_cpu_seconds(plugin.pid)
    together = load(target, call, concurrent=CONCURRENT, seconds=SECONDS)
    used = own_cpu_seconds(plugin.pid) - before
    alone = load(target, call, concurrent=1, seconds=SECONDS / 2)
    each = 1e6 * used / (together.per_second * SECONDS)
    return together.per_second, together.p50_ms, alone.p50_ms, each


def _scrape(stop: threading.Event) -> None:
    while not stop.wait(1.0):
        with urllib.request.urlopen(f"http://127.0.0.1:{_PORT}/metrics", timeout=5) as answer:
            answer.read()


def _main() -> int:
    kinds: dict[str, dict[str, str]] = {
        "off": {},
        "metrics": {"METRICS_LISTEN": f"127.0.0.1:{_PORT}"},
        "audit refuse": {"AUDIT_ON_FAILURE": "refuse"},
        "audit drop": {"AUDIT_ON_FAILURE": "drop"},
    }
    stop = threading.Event()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        hsm = make_token(folder / "hsm")
        plugins = {}
        for index, (kind, environment) in enumerate(kinds.items()):
            if kind.startswith("audit"):
                environment["AUDIT_LOG"] = str(folder / f"{index}.log")
            run = running(hsm, folder / str(index), environment=environment)
            plugins[kind] = stack.enter_context(run)
        threading.Thread(target=_scrape, args=(stop,), daemon=True).start()
        result = _measure(plugins)
        stop.set()
    sys.stdout.write(json.dumps({"token": "SoftHSM2", "calls": result}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(_main())
