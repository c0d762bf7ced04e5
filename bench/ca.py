"""CreateCertificate of a bridge whose CA key is resident in a SoftHSM2 token.

By token (a JWKS file judges it, so no API server shares the cores) and by client certificate,
over one TLS connection that HAProxy makes for the load client.
"""

import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from bench.cost import cpu_seconds
from bench.h2load import Call, load
from bench.load import Load, median_of
from istio_hsm_proto import istio_ca_pb2 as ca
from tests.integration.istiod_ca_bridge import harness
from tests.integration.istiod_ca_bridge.worker_processes import await_workers
from tests.support import pki, softhsm
from tests.support.plugin import Plugin, running

RUNS = 3
SECONDS = 3.0
CONCURRENCIES = (8, 16, 64)
BUSIEST = CONCURRENCIES[-1]
CONNECTIONS = 8
ALGORITHMS = ("rsa-2048", "ecdsa-p256")
_METHOD = (
    f"/{ca.DESCRIPTOR.services_by_name['IstioCertificateService'].full_name}/CreateCertificate"
)
_WAYS_TO_A_CERTIFICATE = ("token", "certificate")
_HEALTH = Call("/grpc.health.v1.Health/Check", b"")
_NAME = "istiod.istio-system.svc"
_WAIT_SECONDS = 10.0
_TUNNEL = """\
global
  nbthread 1
defaults
  mode tcp
  timeout connect 10s
  timeout client 60s
  timeout server 60s
listen ca
  bind unix@{socket}
  server ca {address} ssl alpn h2 sni str({name}) {certificate} {verify}
"""

Figures = dict[str, dict[str, dict[str, dict[str, float]]]]
"""Algorithm -> way -> calls at once -> figures."""


def rates(folder: Path) -> Figures:
    """Return certificates a second by the CA key's algorithm, the way, and calls at once.

    `bridge_us`, `plugin_us`: processor time of these processes for a certificate, in microseconds.
    The way `empty` is a health check: what a call costs that does nothing.
    """
    return {algorithm: _rates(folder / algorithm, algorithm) for algorithm in ALGORITHMS}


def by_workers(folder: Path) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Return certificates a second of one bridge, by its CA_WORKERS.

    For each algorithm and way; `BUSIEST` calls at once over `CONNECTIONS` connections. `bridge_us`,
    `plugin_us`: the processor time of all their processes for a certificate, in microseconds.
    """
    return {algorithm: _by_workers(folder / algorithm, algorithm) for algorithm in ALGORITHMS}


def _by_workers(folder: Path, algorithm: str) -> dict[str, dict[str, dict[str, float]]]:
    found: dict[str, dict[int, list[tuple[Load, float, float]]]] = {}
    with _plugin(folder) as plugin, ExitStack() as sites:
        root = _imported_root(plugin)
        several = {
            count: sites.enter_context(
                _site(folder / str(count), plugin, root, algorithm, {"CA_WORKERS": str(count)})
            )
            for count in (1, 2)
        }
        await_workers(several[2].bridge, 2)
        for _ in range(RUNS):
            for way in _WAYS_TO_A_CERTIFICATE:
                for count, site in several.items():
                    run = _with_workers(site, way, plugin)
                    found.setdefault(way, {}).setdefault(count, []).append(run)
    return {
        way: {str(count): _median_with_workers(runs) for count, runs in by_count.items()}
        for way, by_count in found.items()
    }


def _with_workers(site: "_Site", way: str, plugin: Plugin) -> tuple[Load, float, float]:
    """Return the load, and the seconds of processor time of bridge and plugin for a call."""
    pids = site.bridge.process.pid, plugin.pid
    before = [cpu_seconds(pid) for pid in pids]
    target, call = site.ways[way]
    run = load(target, call, concurrent=BUSIEST, seconds=SECONDS, connections=CONNECTIONS)
    calls = run.per_second * SECONDS
    bridge, signer = (
        (cpu_seconds(pid) - then) / calls for pid, then in zip(pids, before, strict=True)
    )
    return run, bridge, signer


def _median_with_workers(runs: Sequence[tuple[Load, float, float]]) -> dict[str, float]:
    loads, bridge, plugin = zip(*runs, strict=True)
    middle = median_of(list(loads))
    return {
        "per_second": round(middle.per_second),
        "p99_ms": round(middle.p99_ms, 1),
        "bridge_us": round(statistics.median(bridge) * 1e6),
        "plugin_us": round(statistics.median(plugin) * 1e6),
    }


@dataclass(frozen=True, slots=True)
class _Site:
    bridge: harness.Bridge
    ways: Mapping[str, tuple[str, Call]]
    """Target and call, by how the caller proves itself."""


@contextmanager
def _plugin(folder: Path) -> Iterator[Plugin]:
    folder.mkdir()
    with running(softhsm.make_token(folder / "hsm"), folder / "plugin") as plugin:
        yield plugin


def _imported_root(plugin: Plugin) -> pki.Issued:
    root = harness.strict_root()
    harness.prepare(plugin, root)
    return root


@contextmanager
def _site(
    folder: Path,
    plugin: Plugin,
    root: pki.Issued,
    algorithm: str,
    further: Mapping[str, str] | None = None,
) -> Iterator[_Site]:
    """Yield a bridge that serves, and the ways to it."""
    folder.mkdir()
    tokens = harness.token_issuer()
    (folder / "jwks.json").write_text(tokens.jwks())
    settings = {
        "JWKS_FILE": str(folder / "jwks.json"),
        "TOKEN_ISSUER": harness.ISSUER,
        "CA_KEY_ALGORITHM": algorithm,
    } | dict(further or {})
    with harness.running_bridge(folder, plugin.socket, settings) as bridge:
        harness.bring_to_serving(bridge, plugin, root)
        token = tokens.token()
        client = harness.create_certificate(bridge, token=token)
        with _tunnel(bridge, folder, None) as plain, _tunnel(bridge, folder, client) as mutual:
            yield _Site(
                bridge,
                {
                    "empty": (plain, _HEALTH),
                    "token": (plain, _call(("authorization", f"Bearer {token}"))),
                    "certificate": (mutual, _call()),
                },
            )


def _rates(folder: Path, algorithm: str) -> dict[str, dict[str, dict[str, float]]]:
    with _plugin(folder) as plugin:
        root = _imported_root(plugin)
        with _site(folder / "site", plugin, root, algorithm) as site:
            return {
                way: _by_concurrency(target, call, site.bridge, plugin)
                for way, (target, call) in site.ways.items()
            }


def _by_concurrency(
    target: str, call: Call, bridge: harness.Bridge, plugin: Plugin
) -> dict[str, dict[str, float]]:
    found = {}
    for many in CONCURRENCIES:
        before = [cpu_seconds(pid) for pid in (bridge.process.pid, plugin.pid)]
        runs = [load(target, call, concurrent=many, seconds=SECONDS) for _ in range(RUNS)]
        after = [cpu_seconds(pid) for pid in (bridge.process.pid, plugin.pid)]
        calls = sum(run.per_second * SECONDS for run in runs)
        bridge_us, plugin_us = (
            round((end - begin) / calls * 1e6) for begin, end in zip(before, after, strict=True)
        )
        median = median_of(runs)
        found[str(many)] = {
            "per_second": round(median.per_second),
            "p50_ms": round(median.p50_ms, 1),
            "p99_ms": round(median.p99_ms, 1),
            "bridge_us": bridge_us,
            "plugin_us": plugin_us,
        }
    return found


def _call(*metadata: tuple[str, str]) -> Call:
    csr = harness.csr_of(ec.generate_private_key(ec.SECP256R1()))
    request = ca.IstioCertificateRequest(csr=csr, validity_duration=24 * 3600)
    return Call(_METHOD, request.SerializeToString(), (("clusterid", "Kubernetes"), *metadata))


@contextmanager
def _tunnel(bridge: harness.Bridge, folder: Path, client: harness.Workload | None) -> Iterator[str]:
    """Yield a target in the clear behind which HAProxy speaks TLS to the bridge."""
    name = "mutual" if client else "plain"
    certificate = ""
    if client is not None:
        pem = folder / "client.pem"
        pem.touch(mode=0o600)
        pem.write_bytes("".join(client.chain[:-1]).encode() + client.key_pem)
        certificate = f"crt {pem}"
    socket, settings = folder / f"{name}.sock", folder / f"{name}.cfg"
    settings.write_text(
        _TUNNEL.format(
            socket=socket,
            address=bridge.address,
            name=_NAME,
            certificate=certificate,
            verify=f"verify required ca-file {bridge.root_file} verifyhost {_NAME}",
        )
    )
    tunnel = subprocess.Popen(["haproxy", "-db", "-f", str(settings)])
    try:
        end = time.monotonic() + _WAIT_SECONDS
        while not socket.exists() and time.monotonic() < end:
            time.sleep(0.02)
        yield f"unix:{socket}"
    finally:
        tunnel.terminate()
        tunnel.wait()
