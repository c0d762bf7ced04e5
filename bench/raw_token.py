"""What the token itself does a second, without gRPC: the ceiling that the HSM sets.

Run as a process of its own, so that no other module of the same kind is loaded beside it.
Arguments: module, token label, PIN file, state folder; rates by kind and threads on stdout.
"""

import hashlib
import json
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from hsm_plugin.keys import KeyAlgorithm, SignatureAlgorithm
from hsm_plugin.pin_file import read_pin
from hsm_plugin.pin_guard import PinGuard
from hsm_plugin.pkcs11_store import Pkcs11Store

THREADS = (1, 2, 4, 8, 16)
_SECONDS = 1.0
_DIGEST = hashlib.sha256(b"bench").digest()
_JWK = bytes(200)
_KEYS = {
    "RSA-2048": (KeyAlgorithm.RSA_2048, SignatureAlgorithm.RSA_PKCS1_SHA256),
    "RSA-4096": (KeyAlgorithm.RSA_4096, SignatureAlgorithm.RSA_PKCS1_SHA256),
    "P-256": (KeyAlgorithm.ECDSA_P256, SignatureAlgorithm.ECDSA_SHA256),
}


def _works(store: Pkcs11Store) -> dict[str, Callable[[], object]]:
    works: dict[str, Callable[[], object]] = {}
    for name, (algorithm, scheme) in _KEYS.items():
        key_id = f"raw-{algorithm.value}".encode()
        store.generate_signing_key(key_id, algorithm)
        works[name] = partial(store.sign, key_id, scheme, _DIGEST)
    store.generate_kek(b"raw-kek")
    works["AES-256-GCM of 200 bytes"] = partial(store.wrap, b"raw-kek", _JWK, b"aad")
    return works


def _rate(work: Callable[[], object], threads: int) -> float:
    counts = [0] * threads
    started = time.perf_counter()
    end = started + _SECONDS

    def repeat(index: int) -> None:
        while time.perf_counter() < end:
            work()
            counts[index] += 1

    workers = [threading.Thread(target=repeat, args=(index,)) for index in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(counts) / (time.perf_counter() - started)


def _main(module: str, label: str, pin_file: str, state_dir: str) -> None:
    store = Pkcs11Store(
        module, label, lambda: read_pin(Path(pin_file)), PinGuard(Path(state_dir) / "bench-guard")
    )
    store.connect()
    rates = {
        name: {threads: round(_rate(work, threads)) for threads in THREADS}
        for name, work in _works(store).items()
    }
    store.close()
    sys.stdout.write(json.dumps(rates))


if __name__ == "__main__":
    _main(*sys.argv[1:5])
