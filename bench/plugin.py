"""The plugin beside an empty echo server and beside the bare token."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import grpc

from bench import plugin_calls, seldom_calls
from bench.h2load import Call, answer_of, load
from bench.load import median_of
from bench.plugin_calls import ECHO, ECHO_UVLOOP, LOAD_SKEY, SIGN_P256, SIGN_RSA
from bench.serving import CONCURRENT, Run, Server, measured, prepared
from tests.support.faults import FaultyHsm, make_faulty
from tests.support.plugin import Plugin, running
from tests.support.softhsm import SoftHsm, make_token

RUNS = 3
SECONDS = 2.0
CONCURRENCIES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SIZES = (16, 1 << 10, 16 << 10, 64 << 10, 256 << 10)
LATENCIES_MS = (0, 1, 5)
SESSIONS = (1, 2, 4, 8, 16, 30)
MEMORY_CALLS = 200_000
_MEMORY_ROUNDS = 4
_WARM_UP_SECONDS = 0.5
_STARTS = 5

Figures = dict[str, object]


def raw(folder: Path) -> dict[str, dict[str, float]]:
    """Return operations a second of the bare token, by kind and number of threads."""
    hsm = make_token(folder / "raw-hsm")
    arguments = (hsm.module, hsm.label, str(hsm.pin_file), str(folder))
    rates: dict[str, dict[str, float]] = {}
    for program in ("bench.raw_token", "bench.raw_python_pkcs11"):
        output = subprocess.run(
            [sys.executable, "-m", program, *arguments],
            env=os.environ | {"SOFTHSM2_CONF": str(hsm.config)},
            capture_output=True,
            check=True,
        ).stdout
        rates |= json.loads(output)
    return rates


def rates(folder: Path) -> Figures:
    """Return every call at 16 at once and alone, each beside an echo of its own request.

    The echo is an empty server as one writes it, on asyncio's event loop; another one runs on the
    plugin's. `cpu_us`: processor time of the serving processes for a call, in microseconds.
    """
    with (
        _plugin(folder, "rates") as (plugin, calls),
        _echo(folder) as echo,
        _echo(folder, "uvloop") as echo_uvloop,
    ):
        served = Server.of(plugin)
        runs: dict[str, list[tuple[Run, Run]]] = {}
        for _ in range(RUNS):
            for name, call in calls.items():
                empty = plugin_calls.echo_call(call.request)
                runs.setdefault(name, []).append(
                    (measured(served, call, SECONDS), measured(echo, empty, SECONDS))
                )
            empty = plugin_calls.echo_call()
            for name, server in ((ECHO, echo), (ECHO_UVLOOP, echo_uvloop)):
                runs.setdefault(name, []).append(
                    (measured(server, empty, SECONDS), measured(echo, empty, SECONDS))
                )
    return {name: _summary(kept) for name, kept in runs.items()}


def seldom(folder: Path) -> Figures:
    """Return the calls that are made seldom, at 16 at once and alone."""
    runs: dict[str, list[Run]] = {}
    hsm = make_token(folder / "seldom-hsm")
    serving = running(hsm, folder / "seldom", arguments=("--kms-kek-id", seldom_calls.KEK))
    with serving as plugin, plugin.channel() as channel:
        served = Server.of(plugin)
        calls = seldom_calls.prepare(channel)
        for _ in range(RUNS):
            for name, call in calls.items():
                runs.setdefault(name, []).append(measured(served, call, seconds=1))
    return {name: _own_figures(kept) for name, kept in runs.items()}


def _own_figures(runs: list[Run]) -> dict[str, float]:
    together = median_of([run.together for run in runs])
    alone = median_of([run.alone for run in runs])
    return {
        "per_second": round(together.per_second),
        "p50_ms": round(together.p50_ms, 2),
        "p99_ms": round(together.p99_ms, 2),
        "alone_p50_ms": round(alone.p50_ms, 3),
        "cpu_us": round(statistics.median(run.cpu_us for run in runs)),
    }


def _summary(runs: list[tuple[Run, Run]]) -> dict[str, float]:
    own = _own_figures([run for run, _ in runs])
    echo = _own_figures([run for _, run in runs])
    return own | {
        "echo_per_second": echo["per_second"],
        "echo_alone_p50_ms": echo["alone_p50_ms"],
        "of_echo": round(own["per_second"] / echo["per_second"], 2),
        "alone_of_echo": round(own["alone_p50_ms"] / echo["alone_p50_ms"], 2),
    }


def startup(folder: Path) -> Figures:
    """Return the median seconds from the start of the process to health SERVING."""
    hsm = make_token(folder / "startup-hsm")
    took = []
    for number in range(_STARTS):
        started = time.perf_counter()
        with running(hsm, folder / f"startup-{number}"):
            took.append(time.perf_counter() - started)
    return {"seconds": round(statistics.median(took), 2), "starts": _STARTS}


def concurrency(folder: Path) -> Figures:
    """Return calls a second by the number of calls at once."""
    chosen = (plugin_calls.GENERATE_DEK, LOAD_SKEY, SIGN_RSA, SIGN_P256)
    with _plugin(folder, "concurrency") as (plugin, calls), _echo(folder) as echo:
        targets = {ECHO: (echo.target, plugin_calls.echo_call())}
        targets |= {name: (Server.of(plugin).target, calls[name]) for name in chosen}
        return {
            name: {
                many: round(load(target, call, concurrent=many, seconds=1).per_second)
                for many in CONCURRENCIES
            }
            for name, (target, call) in targets.items()
        }


def sizes(folder: Path) -> Figures:
    """Return calls a second by the size of the plaintext, beside an echo of as many bytes."""
    found: dict[str, dict[int, int]] = {ECHO: {}, "AuthenticatedEncrypt": {}}
    with _plugin(folder, "sizes") as (plugin, _), _echo(folder) as echo:
        with plugin.keys() as keys:
            dek = plugin_calls.new_dek(keys)
        for size in SIZES:
            for name, target, call in (
                (ECHO, echo.target, plugin_calls.echo_call(b"x" * size)),
                (
                    "AuthenticatedEncrypt",
                    Server.of(plugin).target,
                    plugin_calls.encrypt_call(dek, size),
                ),
            ):
                rate = load(target, call, concurrent=CONCURRENT, seconds=1).per_second
                found[name][size] = round(rate)
    return dict(found)


def objects(folder: Path, counts: tuple[int, ...]) -> Figures:
    """Return calls a second, and seconds from start to serving, by further keys in the token."""
    hsm = make_token(folder / "objects-hsm")
    found: Figures = {}
    made = 0
    for count in counts:
        _fill(hsm, count - made)
        made = count
        started = time.perf_counter()
        with running(hsm, folder / f"objects-{count}") as plugin:
            ready = time.perf_counter() - started
            calls = prepared(plugin)
            found[str(count)] = {"start_to_serving_seconds": round(ready, 2)} | {
                name: round(
                    load(
                        Server.of(plugin).target, calls[name], concurrent=CONCURRENT, seconds=1
                    ).per_second
                )
                for name in (plugin_calls.GENERATE_DEK, LOAD_SKEY, SIGN_P256)
            }
    return found


def _fill(hsm: SoftHsm, count: int) -> None:
    subprocess.run(
        [
            *(sys.executable, "-m", "bench.fill_token"),
            *(hsm.module, hsm.label, str(hsm.pin_file), str(count)),
        ],
        env=os.environ | {"SOFTHSM2_CONF": str(hsm.config)},
        check=True,
    )


def latency(folder: Path) -> Figures:
    """Return calls a second by milliseconds added to each PKCS#11 call, and by sessions."""
    hsm = make_faulty(make_token(folder / "latency-hsm"))
    chosen = (SIGN_RSA, SIGN_P256, LOAD_SKEY)
    found: Figures = {}
    for sessions in SESSIONS:
        serving = running(
            hsm.hsm,
            folder / f"latency-{sessions}",
            arguments=("--sessions", str(sessions)),
            environment=hsm.environment(),
        )
        with serving as plugin:
            calls = prepared(plugin)
            found[str(sessions)] = {
                f"{delay} ms": _delayed(hsm, delay, plugin, {name: calls[name] for name in chosen})
                for delay in LATENCIES_MS
            }
    return found


def _delayed(
    hsm: FaultyHsm, delay_ms: int, plugin: Plugin, calls: Mapping[str, Call]
) -> dict[str, int]:
    hsm.delay(delay_ms * 1000, "C_SignInit", "C_Sign", "C_DecryptInit", "C_Decrypt")
    try:
        return {
            name: round(load(Server.of(plugin).target, call, concurrent=64, seconds=1).per_second)
            for name, call in calls.items()
        }
    finally:
        hsm.heal()


def memory(folder: Path) -> Figures:
    """Return the plugin's memory in MiB, its worker included, before and after many calls."""
    with _plugin(folder, "memory") as (plugin, calls):
        for call in calls.values():
            load(Server.of(plugin).target, call, concurrent=CONCURRENT, seconds=_WARM_UP_SECONDS)
        resident = [_resident_mib(plugin.pid)]
        done = 0
        for _ in range(_MEMORY_ROUNDS):
            begun = done
            while done < begun + MEMORY_CALLS // _MEMORY_ROUNDS:
                for name in (LOAD_SKEY, SIGN_P256, plugin_calls.GENERATE_DEK):
                    run = load(
                        Server.of(plugin).target, calls[name], concurrent=CONCURRENT, seconds=3
                    )
                    done += round(run.per_second * 3)
            resident.append(_resident_mib(plugin.pid))
    return {"calls": done, "resident_mib": resident}


def _resident_mib(pid: int) -> float:
    """Return proportional set sizes, so that what both processes share counts once."""
    total = 0
    for process in (pid, *_children(pid)):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return round(total / 1024, 1)


def _children(pid: int) -> tuple[int, ...]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return tuple(int(child) for child in text.split())


@contextmanager
def _plugin(folder: Path, name: str) -> Iterator[tuple[Plugin, Mapping[str, Call]]]:
    with running(make_token(folder / f"{name}-hsm"), folder / name) as plugin:
        yield plugin, prepared(plugin)


@contextmanager
def _echo(folder: Path, loop: str = "asyncio") -> Iterator[Server]:
    """Yield an echo server on this event loop."""
    socket = folder / f"echo-{loop}.sock"
    server = subprocess.Popen([sys.executable, "-m", "bench.echo", str(socket), loop])
    target = f"unix:{socket}"
    try:
        with grpc.insecure_channel(target) as channel:
            grpc.channel_ready_future(channel).result(timeout=30)
        answer_of(target, plugin_calls.echo_call())
        yield Server(target, server.pid)
    finally:
        server.terminate()
        server.wait()
