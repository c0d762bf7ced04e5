"""CreateCertificate of a bridge whose CA key is resident in a SoftHSM2 token.

By token (a JWKS file judges it, so no API server shares the cores) and by client certificate,
over one TLS connection that HAProxy makes for the load client.
"""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from bench.cost import cpu_seconds
from bench.h2load import Call, load
from bench.load import median_of
from istio_hsm_proto import istio_ca_pb2 as ca
from tests.integration.istiod_ca_bridge import harness
from tests.support import softhsm
from tests.support.plugin import Plugin, running

RUNS = 3
SECONDS = 3.0
CONCURRENCIES = (8, 16, 64)
ALGORITHMS = ("rsa-2048", "ecdsa-p256")
_METHOD = (
    f"/{ca.DESCRIPTOR.services_by_name['IstioCertificateService'].full_name}/CreateCertificate"
)
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


def _rates(folder: Path, algorithm: str) -> dict[str, dict[str, dict[str, float]]]:
    folder.mkdir()
    hsm = softhsm.make_token(folder / "hsm")
    tokens = harness.token_issuer()
    (folder / "jwks.json").write_text(tokens.jwks())
    settings = {
        "JWKS_FILE": str(folder / "jwks.json"),
        "TOKEN_ISSUER": harness.ISSUER,
        "CA_KEY_ALGORITHM": algorithm,
    }
    with running(hsm, folder / "plugin") as plugin:
        root = harness.strict_root()
        harness.prepare(plugin, root)
        with harness.running_bridge(folder, plugin.socket, settings) as bridge:
            harness.bring_to_serving(bridge, plugin, root)
            token = tokens.token()
            client = harness.create_certificate(bridge, token=token)
            with _tunnel(bridge, folder, None) as plain, _tunnel(bridge, folder, client) as mutual:
                ways = {
                    "empty": (plain, _HEALTH),
                    "token": (plain, _call(("authorization", f"Bearer {token}"))),
                    "certificate": (mutual, _call()),
                }
                return {
                    way: _by_concurrency(target, call, bridge, plugin)
                    for way, (target, call) in ways.items()
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
