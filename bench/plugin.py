"""The plugin's calls beside an empty echo server and beside the bare token, in one run."""

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc

from bench.echo import METHOD
from bench.load import Load, measure, median_of
from istio_hsm_proto import kms_istio_v1_pb2 as kms
from istio_hsm_proto import kms_istio_v1_pb2_grpc as kms_grpc
from istio_hsm_proto import signing_v1_pb2 as signing
from istio_hsm_proto import signing_v1_pb2_grpc as signing_grpc
from tests.support import pki
from tests.support.plugin import running
from tests.support.softhsm import SoftHsm, make_token

RUNS = 3
SECONDS = 1.5
CONCURRENT = 16
BATCH = 64
_KEK = b"bench"
_DIGEST = hashlib.sha256(b"bench").digest()

Calls = dict[str, Callable[[], Awaitable[object]]]


def run(folder: Path) -> dict[str, object]:
    """Return every figure: calls by name, their ratio to the echo, and the token's rates."""
    hsm = make_token(folder / "hsm")
    raw = _raw_rates(hsm, folder)
    started = time.perf_counter()
    with running(hsm, folder / "plugin") as plugin:
        ready = time.perf_counter() - started
        loads = asyncio.run(_measure(f"unix:{plugin.socket}", folder / "echo.sock"))
    echo = loads["echo"]["concurrent"].per_second
    return {
        "start_to_serving_seconds": round(ready, 2),
        "raw_token_signatures_per_second": {name: round(rate) for name, rate in raw.items()},
        "calls": {
            name: {
                "per_second_at_16": round(load["concurrent"].per_second),
                "of_echo": round(load["concurrent"].per_second / echo, 2),
                "p50_ms_at_16": round(load["concurrent"].p50_ms, 2),
                "p99_ms_at_16": round(load["concurrent"].p99_ms, 2),
                "p50_ms_alone": round(load["alone"].p50_ms, 2),
            }
            for name, load in loads.items()
        },
    }


def _raw_rates(hsm: SoftHsm, folder: Path) -> dict[str, float]:
    output = subprocess.run(
        [
            *(sys.executable, "-m", "bench.raw_token"),
            *(hsm.module, hsm.label, str(hsm.pin_file), str(folder), str(CONCURRENT)),
        ],
        env=os.environ | {"SOFTHSM2_CONF": str(hsm.config)},
        capture_output=True,
        check=True,
    ).stdout
    rates: dict[str, float] = json.loads(output)
    return rates


async def _measure(plugin: str, echo: Path) -> dict[str, dict[str, Load]]:
    """Run all calls in turn, again and again, so that a change of the machine hits them alike."""
    runs: dict[str, dict[str, list[Load]]] = {}
    async with _echo_channel(echo) as echo_channel, grpc.aio.insecure_channel(plugin) as channel:
        calls = {"echo": _echo(echo_channel), **await _calls(channel)}
        for _ in range(RUNS):
            for name, call in calls.items():
                await call()
                kept = runs.setdefault(name, {"alone": [], "concurrent": []})
                kept["alone"].append(await measure(call, concurrent=1, seconds=SECONDS / 3))
                kept["concurrent"].append(
                    await measure(call, concurrent=CONCURRENT, seconds=SECONDS)
                )
    return {
        name: {kind: median_of(loads) for kind, loads in kept.items()}
        for name, kept in runs.items()
    }


def _echo(channel: grpc.aio.Channel) -> Callable[[], Awaitable[object]]:
    method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)
    return lambda: method(b"x" * 300)


async def _calls(channel: grpc.aio.Channel) -> Calls:
    keys = kms_grpc.KeyManagementServiceStub(channel)
    sign = signing_grpc.SigningServiceStub(channel)
    await keys.GenerateKEK(kms.GenerateKEKRequest(kek_kid=_KEK))
    dek = (await keys.GenerateDEK(kms.GenerateDEKRequest(kek_kid=_KEK))).encrypted_dek_blob
    skey = await keys.GenerateSKey(
        kms.GenerateSKeyRequest(size=2048, kind=kms.RSA, kek_kid=_KEK, encrypted_dek_blob=dek)
    )
    sealed = await keys.AuthenticatedEncrypt(
        kms.AuthenticatedEncryptRequest(
            kek_kid=_KEK, encrypted_dek_blob=dek, plaintext=b"x" * 1000, aad=b"bench"
        )
    )
    encrypt = kms.AuthenticatedEncryptRequest(
        kek_kid=_KEK, encrypted_dek_blob=dek, plaintext=b"x" * 1000, aad=b"bench"
    )
    decrypt = kms.AuthenticatedDecryptRequest(
        kek_kid=_KEK, encrypted_dek_blob=dek, ciphertext=sealed.ciphertext, aad=b"bench"
    )
    load = kms.LoadSKeyRequest(
        kek_kid=_KEK, encrypted_dek_blob=dek, encrypted_skey_blob=skey.encrypted_skey_blob
    )
    make = kms.GenerateDEKRequest(kek_kid=_KEK)
    rsa = signing.SignRequest(
        key_id=b"bench-rsa-2048", algorithm=signing.RSA_PKCS1_SHA256, digest=_DIGEST
    )
    ecdsa = signing.SignRequest(
        key_id=b"bench-ecdsa-p256", algorithm=signing.ECDSA_SHA256, digest=_DIGEST
    )
    batch = signing.SignBatchRequest(
        key_id=b"bench-ecdsa-p256", algorithm=signing.ECDSA_SHA256, digests=[_DIGEST] * BATCH
    )
    root = pki.root("Bench Root")
    await keys.ImportCACert(kms.ImportCACertRequest(ca_cert_blob=root.der))
    chain = kms.VerifyCertChainRequest(certificates=[root.der])
    return {
        "GenerateDEK": lambda: keys.GenerateDEK(make),
        "LoadSKey": lambda: keys.LoadSKey(load),
        "AuthenticatedEncrypt": lambda: keys.AuthenticatedEncrypt(encrypt),
        "AuthenticatedDecrypt": lambda: keys.AuthenticatedDecrypt(decrypt),
        "VerifyCertChain": lambda: keys.VerifyCertChain(chain),
        "Sign RSA-2048": lambda: sign.Sign(rsa),
        "Sign P-256": lambda: sign.Sign(ecdsa),
        f"SignBatch of {BATCH}, P-256": lambda: sign.SignBatch(batch),
    }


@asynccontextmanager
async def _echo_channel(socket: Path) -> AsyncIterator[grpc.aio.Channel]:
    server = await asyncio.create_subprocess_exec(sys.executable, "-m", "bench.echo", str(socket))
    try:
        async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
            await channel.channel_ready()
            yield channel
    finally:
        server.terminate()
        await server.wait()
