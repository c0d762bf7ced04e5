"""What the worker process costs, beside threads of the same process: JSON on standard output.

`python -m bench.worker_cost` makes a throw-away SoftHSM2 token and asks it for the same work both
ways, from one asyncio loop without gRPC, alone and 16 at once. Rounds of both ways alternate;
each figure is the median of the rounds. "empty" is a call that does nothing at the other end.
"""

import asyncio
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hsm_plugin import worker
from hsm_plugin.admission import Lane
from hsm_plugin.envelope import protected_header
from hsm_plugin.keys import KeyAlgorithm, Sealed, SignatureAlgorithm, TokenIdentity
from hsm_plugin.pin_guard import PinGuard
from hsm_plugin.pkcs11_store import Pkcs11Store
from hsm_plugin.token_client import TokenClient
from hsm_plugin.worker_process import WorkerSettings
from tests.support import softhsm
from tests.support.softhsm import SoftHsm

_THREADS = 8
_CONCURRENT = 16
_ALONE_CALLS = 500
_SECONDS = 1.0
_ROUNDS = 5
_KEK, _P256, _RSA = b"bench-kek", b"bench-p256", b"bench-rsa"
_DIGEST, _JWK = bytes(32), bytes(200)
_AAD = protected_header("bench-kek")

Call = Callable[[], Awaitable[object]]


class _NullStore(Pkcs11Store):
    """Signs nothing, at once."""

    def __init__(self) -> None:
        """Load no module."""

    def connect(self, order: Sequence[int] = ()) -> TokenIdentity:
        """Return an identity."""
        del order
        return TokenIdentity("null", "", "", slot_id=0, session_limit=_THREADS)

    def sign(self, key_id: bytes, algorithm: SignatureAlgorithm, digest: bytes) -> bytes:
        """Return nothing."""
        del key_id, algorithm, digest
        return b""

    def close(self) -> None:
        """Do nothing."""


@dataclass(frozen=True, slots=True)
class _NullSettings(WorkerSettings):
    def command(self, socket_number: int) -> list[str]:
        """Start this module as the worker."""
        return [sys.executable, "-m", "bench.worker_cost", "--null-worker", str(socket_number)]


@contextmanager
def _reaching(hsm: SoftHsm) -> Iterator[None]:
    os.environ["SOFTHSM2_CONF"] = str(hsm.config)
    yield


def _settings(hsm: SoftHsm) -> WorkerSettings:
    return WorkerSettings(
        module=hsm.module,
        token_label=hsm.label,
        pin_file=hsm.pin_file,
        state_dir=hsm.folder,
        threads=_THREADS,
    )


def _store(hsm: SoftHsm) -> Pkcs11Store:
    store = Pkcs11Store(
        hsm.module, hsm.label, hsm.pin_file.read_text, PinGuard(hsm.folder / "guard-of-threads")
    )
    store.connect()
    store.generate_kek(_KEK)
    store.generate_signing_key(_P256, KeyAlgorithm.ECDSA_P256)
    store.generate_signing_key(_RSA, KeyAlgorithm.RSA_2048)
    return store


def _on_threads(store: Pkcs11Store, pool: ThreadPoolExecutor, sealed: Sealed) -> dict[str, Call]:
    loop, null = asyncio.get_running_loop(), _NullStore()
    p256, rsa = SignatureAlgorithm.ECDSA_SHA256, SignatureAlgorithm.RSA_PKCS1_SHA256
    return {
        "empty": lambda: loop.run_in_executor(pool, null.sign, _P256, p256, _DIGEST),
        "sign P-256": lambda: loop.run_in_executor(pool, store.sign, _P256, p256, _DIGEST),
        "sign RSA-2048": lambda: loop.run_in_executor(pool, store.sign, _RSA, rsa, _DIGEST),
        "wrap": lambda: loop.run_in_executor(pool, store.wrap, _KEK, _JWK, _AAD),
        "unwrap": lambda: loop.run_in_executor(pool, store.unwrap, _KEK, sealed, _AAD),
    }


def _in_worker(client: TokenClient, null: TokenClient, sealed: Sealed) -> dict[str, Call]:
    token, empty = client.bound(Lane(b""), time.monotonic() + 3600), null.bound(Lane(b""), 1e12)
    p256, rsa = SignatureAlgorithm.ECDSA_SHA256, SignatureAlgorithm.RSA_PKCS1_SHA256
    return {
        "empty": lambda: empty.sign(_P256, p256, _DIGEST),
        "sign P-256": lambda: token.sign(_P256, p256, _DIGEST),
        "sign RSA-2048": lambda: token.sign(_RSA, rsa, _DIGEST),
        "wrap": lambda: token.wrap(_KEK, _JWK, _AAD),
        "unwrap": lambda: token.unwrap(_KEK, sealed, _AAD),
    }


async def _alone_us(call: Call) -> float:
    spans = []
    for _ in range(_ALONE_CALLS):
        started = time.perf_counter()
        await call()
        spans.append(time.perf_counter() - started)
    return 1e6 * statistics.median(spans)


async def _rate(call: Call) -> float:
    end, count = time.perf_counter() + _SECONDS, 0

    async def work() -> None:
        nonlocal count
        while time.perf_counter() < end:
            await call()
            count += 1

    started = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(_CONCURRENT)))
    return count / (time.perf_counter() - started)


async def _measure(hsm: SoftHsm) -> dict[str, object]:
    store = _store(hsm)
    sealed = store.wrap(_KEK, _JWK, _AAD)
    client = TokenClient(_settings(hsm), queue_limit=1024, hang_seconds=60)
    null = TokenClient(
        _NullSettings("", "", Path(), Path(), _THREADS), queue_limit=1024, hang_seconds=60
    )
    await client.connect()
    await null.connect()
    with ThreadPoolExecutor(_THREADS) as pool:
        ways = {
            "threads": _on_threads(store, pool, sealed),
            "worker": _in_worker(client, null, sealed),
        }
        figures: dict[str, dict[str, list[tuple[float, float]]]] = {
            name: {way: [] for way in ways} for name in ways["threads"]
        }
        for _ in range(_ROUNDS):
            for name, rounds in figures.items():
                for way, calls in ways.items():
                    call = calls[name]
                    rounds[way].append((await _alone_us(call), await _rate(call)))
    await client.close()
    await null.close()
    return {
        name: {
            way: {
                "alone_p50_us": round(statistics.median(alone for alone, _ in rounds)),
                f"calls_per_second_at_{_CONCURRENT}": round(
                    statistics.median(rate for _, rate in rounds)
                ),
            }
            for way, rounds in ways_of_name.items()
        }
        for name, ways_of_name in figures.items()
    }


def _main(arguments: list[str]) -> None:
    if arguments:
        worker.serve(socket.socket(fileno=int(arguments[-1])), _NullStore(), _THREADS)
        return
    with tempfile.TemporaryDirectory() as folder:
        hsm = softhsm.make_token(Path(folder) / "token")
        with _reaching(hsm):
            result = asyncio.run(_measure(hsm))
    about = {"token": "SoftHSM2", "threads": _THREADS, "cpus": os.cpu_count()}
    sys.stdout.write(json.dumps({"about": about, "figures": result}, indent=2) + "\n")


if __name__ == "__main__":
    _main(sys.argv[1:])
