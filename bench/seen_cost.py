"""`python -m bench.seen_cost`: what metrics and the audit log cost, in one run, as JSON.

One plugin whose metrics are off, one that is scraped each second, one whose audit log holds up
answers (refuse) and one whose log does not (drop), called in turn. Rates depend on what else the
machine does; the processor time of the server for each call is steadier.
"""

import asyncio
import hashlib
import json
import statistics
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path

import grpc

from bench.cost import own_cpu_seconds
from bench.load import measure
from istio_hsm_proto import kms_istio_v1_pb2 as kms
from istio_hsm_proto import kms_istio_v1_pb2_grpc as kms_grpc
from istio_hsm_proto import signing_v1_pb2 as signing
from istio_hsm_proto import signing_v1_pb2_grpc as signing_grpc
from tests.support.plugin import Plugin, running
from tests.support.softhsm import make_token

ROUNDS = 5
SECONDS = 1.0
CONCURRENT = 16
_PORT = 19464
_KEY = b"bench"
_DIGEST = hashlib.sha256(b"bench").digest()

Call = Callable[[], Awaitable[object]]


async def _calls(channel: grpc.aio.Channel) -> dict[str, Call]:
    keys = kms_grpc.KeyManagementServiceStub(channel)
    sign = signing_grpc.SigningServiceStub(channel)
    await keys.GenerateKEK(kms.GenerateKEKRequest(kek_kid=_KEY))
    dek = (await keys.GenerateDEK(kms.GenerateDEKRequest(kek_kid=_KEY))).encrypted_dek_blob
    await sign.GenerateSigningKey(
        signing.GenerateSigningKeyRequest(key_id=_KEY, algorithm=signing.ECDSA_P256)
    )
    encrypt = kms.AuthenticatedEncryptRequest(
        kek_kid=_KEY, encrypted_dek_blob=dek, plaintext=b"x" * 1000, aad=b"bench"
    )
    request = signing.SignRequest(key_id=_KEY, algorithm=signing.ECDSA_SHA256, digest=_DIGEST)
    return {
        "AuthenticatedEncrypt": lambda: keys.AuthenticatedEncrypt(encrypt),
        "Sign P-256": lambda: sign.Sign(request),
    }


async def _measure(plugins: dict[str, Plugin]) -> dict[str, dict[str, dict[str, float]]]:
    """Return call -> plugin -> medians."""
    figures: dict[tuple[str, str], list[tuple[float, float, float, float]]] = {}
    channels = {
        name: grpc.aio.insecure_channel(f"unix:{it.socket}") for name, it in plugins.items()
    }
    calls = {name: await _calls(channel) for name, channel in channels.items()}
    for _ in range(ROUNDS):
        for call in ("AuthenticatedEncrypt", "Sign P-256"):
            for name, plugin in plugins.items():
                before = own_cpu_seconds(plugin.pid)
                load = await measure(calls[name][call], concurrent=CONCURRENT, seconds=SECONDS)
                used = own_cpu_seconds(plugin.pid) - before
                alone = await measure(calls[name][call], concurrent=1, seconds=SECONDS / 2)
                each = 1e6 * used / (load.per_second * SECONDS)
                kept = figures.setdefault((call, name), [])
                kept.append((load.per_second, load.p50_ms, alone.p50_ms, each))
    for channel in channels.values():
        await channel.close()
    result: dict[str, dict[str, dict[str, float]]] = {}
    for (call, name), runs in figures.items():
        rate, at_16, alone_ms, each = (statistics.median(run) for run in zip(*runs, strict=True))
        result.setdefault(call, {})[name] = {
            "per_second_at_16": round(rate),
            "p50_ms_at_16": round(at_16, 2),
            "p50_ms_alone": round(alone_ms, 2),
            "server_processor_us_a_call": round(each),
        }
    return result


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
        result = asyncio.run(_measure(plugins))
        stop.set()
    sys.stdout.write(json.dumps({"token": "SoftHSM2", "calls": result}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(_main())
