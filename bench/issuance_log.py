"""What the bridge's issuance log costs: `python -m bench.issuance_log [FOLDER]` prints JSON.

Each call is a certificate's entry, written and synced to the disk of the folder before it ends.
"""

import asyncio
import dataclasses
import json
import logging
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from bench.load import Load, measure, median_of
from istiod_ca_bridge.issuance_file import IssuanceFile
from istiod_ca_bridge.issuance_log import IssuanceLog, IssuanceLogSettings
from istiod_ca_bridge.log import EventLog
from istiod_ca_bridge.metrics import Metrics

_RUNS = 3
_SECONDS = 2.0
_ENTRY = {
    "serial": "5f" * 16,
    "identity": "spiffe://cluster.local/ns/shop/sa/cart",
    "namespace": "shop",
    "service_account": "cart",
    "pod": "cart-6d5f7c9b8-x2x2x",
    "pod_uid": "6f1c9a3e-0000-4000-8000-000000000000",
    "by": "token",
    "key_sha256": "ab" * 32,
    "not_after": "2026-01-01T00:00:00Z",
    "ca_serial": "cd" * 16,
}


def main() -> int:
    """Return the exit code."""
    parent = sys.argv[1] if len(sys.argv) > 1 else None
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        loads = asyncio.run(_loads(Path(folder)))
    result = {f"{at_once}_at_once": dataclasses.asdict(load) for at_once, load in loads.items()}
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    return 0


async def _loads(folder: Path) -> dict[int, Load]:
    path = folder / "issued.log"
    settings = IssuanceLogSettings(path, 100 << 20, 1000, issue_without=False)
    file = IssuanceFile(path, settings.max_bytes, lambda: datetime.now(UTC))
    quiet = EventLog(logging.getLogger("bench"))
    log = IssuanceLog(settings, file, lambda: None, quiet, Metrics())
    loads = {}
    async with log.running():
        for at_once in (1, 8, 64):
            runs = [
                await measure(lambda: log.record(_ENTRY), concurrent=at_once, seconds=_SECONDS)
                for _ in range(_RUNS)
            ]
            loads[at_once] = median_of(runs)
    return loads


if __name__ == "__main__":
    sys.exit(main())
