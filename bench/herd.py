"""5,000 sidecars that ask for their first certificate at the same moment, with the defaults."""

import asyncio
import resource
import statistics
from pathlib import Path

from bench.cost import cpu_seconds
from tests.integration.istiod_ca_bridge import harness
from tests.integration.istiod_ca_bridge.herd import stampede
from tests.support import softhsm
from tests.support.plugin import running

SIDECARS = 5000
_SECONDS = 300.0


def rush(folder: Path) -> dict[str, object]:
    """Return how a herd fared, by an RSA-2048 key resident in a SoftHSM2 token.

    `tried_again` counts tries by status; `cpu_us` is processor time of bridge and plugin for a
    sidecar, its TLS handshakes included.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    hsm = softhsm.make_token(folder / "hsm")
    tokens = harness.token_issuer()
    (folder / "jwks.json").write_text(tokens.jwks())
    settings = {"JWKS_FILE": str(folder / "jwks.json"), "TOKEN_ISSUER": harness.ISSUER}
    with running(hsm, folder / "plugin") as plugin:
        root = harness.strict_root()
        harness.prepare(plugin, root)
        with harness.running_bridge(folder, plugin.socket, settings) as bridge:
            harness.bring_to_serving(bridge, plugin, root)
            before = cpu_seconds(bridge.process.pid) + cpu_seconds(plugin.pid)
            herd = asyncio.run(stampede(bridge, tokens, SIDECARS, _SECONDS))
            spent = cpu_seconds(bridge.process.pid) + cpu_seconds(plugin.pid) - before
            return {
                "sidecars": SIDECARS,
                "served": len(herd.seconds),
                "failed_for_good": dict(herd.failed),
                "tried_again": dict(herd.retried),
                "median_s": round(statistics.median(herd.seconds), 1),
                "last_s": round(max(herd.seconds), 1),
                "cpu_us": round(spent / SIDECARS * 1e6),
                "bridge_peak_mib": _peak_mib(bridge.process.pid),
            }


def _peak_mib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    peak = next(line for line in lines if line.startswith("VmHWM"))
    return round(int(peak.split()[1]) / 1024)
