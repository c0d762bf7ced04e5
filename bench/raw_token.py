"""What the token itself signs a second, without gRPC: the ceiling that the HSM sets.

Run as a process of its own, so that no other module of the same kind is loaded beside it.
"""

import hashlib
import json
import sys
import threading
import time
from pathlib import Path

from hsm_plugin.keys import KeyAlgorithm, SignatureAlgorithm
from hsm_plugin.pin_file import read_pin
from hsm_plugin.pin_guard import PinGuard
from hsm_plugin.pkcs11_store import Pkcs11Store

_DIGEST = hashlib.sha256(b"bench").digest()
_KEYS = {
    "RSA-2048": (KeyAlgorithm.RSA_2048, SignatureAlgorithm.RSA_PKCS1_SHA256),
    "P-256": (KeyAlgorithm.ECDSA_P256, SignatureAlgorithm.ECDSA_SHA256),
}


def _rate(store: Pkcs11Store, key: KeyAlgorithm, scheme: SignatureAlgorithm, threads: int) -> float:
    key_id = f"bench-{key.value}".encode()
    store.generate_signing_key(key_id, key)
    counts = [0] * threads
    end = time.perf_counter() + 1.5

    def work(index: int) -> None:
        while time.perf_counter() < end:
            store.sign(key_id, scheme, _DIGEST)
            counts[index] += 1

    workers = [threading.Thread(target=work, args=(index,)) for index in range(threads)]
    started = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(counts) / (time.perf_counter() - started)


def _main(module: str, label: str, pin_file: str, state_dir: str, threads: str) -> None:
    store = Pkcs11Store(
        module, label, lambda: read_pin(Path(pin_file)), PinGuard(Path(state_dir) / "bench-guard")
    )
    store.connect()
    rates = {name: _rate(store, *kind, int(threads)) for name, kind in _KEYS.items()}
    store.close()
    sys.stdout.write(json.dumps(rates))


if __name__ == "__main__":
    _main(*sys.argv[1:6])
