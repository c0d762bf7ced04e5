"""What the worker does for each operation: byte strings in, a call of the store, byte strings out.

hsm_plugin.worker_codec has the pairs that turn results into byte strings and back.
"""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from hsm_plugin import kek_blobs, worker_codec
from hsm_plugin.keys import (
    KekCipher,
    KeyAlgorithm,
    KeyStore,
    Sealed,
    SignatureAlgorithm,
    TokenIdentity,
    TrustedRoot,
)
from hsm_plugin.pin_file import same_pin
from hsm_plugin.recovery import Action
from hsm_plugin.wire import Operation
from hsm_plugin.worker_snapshot import WorkerSnapshot

_MAKING_SECONDS = 0.02
"""After this no further DEK is made in the same message."""


class TokenStore(KeyStore, Protocol):
    """A KeyStore with the connection that it lives on."""

    def connect(self, order: Sequence[int] = ()) -> TokenIdentity:
        """Find a token, in this order of their places in the list, and log in."""

    def probe(self) -> None:
        """Return when the token answers."""

    def wrap_all(
        self,
        kek_id: bytes,
        plaintexts: Sequence[bytes],
        aad: bytes,
        cipher: KekCipher,
        *,
        seconds: float,
    ) -> list[Sealed]:
        """Wrap the first of them and those after it that are begun within so many seconds."""

    @property
    def is_connected(self) -> bool:
        """True while the token is usable."""

    @property
    def loss(self) -> Action:
        """What a lost token needs."""

    def snapshot(self) -> WorkerSnapshot:
        """Return what the worker is asked to tell of itself."""

    def close(self) -> None:
        """Leave the token."""


def perform(store: TokenStore, operation: Operation, fields: list[bytes]) -> list[bytes]:
    """Return the operation's results. Raises what the store raises."""
    return _HANDLERS[operation](store, fields)


def _load_module(_: TokenStore, __: list[bytes]) -> list[bytes]:
    """Return nothing: a worker that takes requests has loaded it."""
    return []


def _connect(store: TokenStore, fields: list[bytes]) -> list[bytes]:
    return worker_codec.encode_identity(store.connect(worker_codec.decode_order(fields)))


def _probe(store: TokenStore, _: list[bytes]) -> list[bytes]:
    store.probe()
    return []


def _same_pin(_: TokenStore, fields: list[bytes]) -> list[bytes]:
    first, second = (Path(os.fsdecode(field)) for field in fields)
    return [worker_codec.encode_bool(same_pin(first, second))]


def _snapshot(store: TokenStore, _: list[bytes]) -> list[bytes]:
    return [store.snapshot().encode()]


def _generate_kek(store: KeyStore, fields: list[bytes]) -> list[bytes]:
    kek_id, cipher = fields
    created = store.generate_kek(kek_id, KekCipher(cipher.decode()))
    return [worker_codec.encode_bool(created)]


def _wrap(store: KeyStore, fields: list[bytes]) -> list[bytes]:
    kek_id, plaintext, aad, cipher = fields
    sealed = store.wrap(kek_id, plaintext, aad, KekCipher(cipher.decode()))
    return [sealed.iv, sealed.ciphertext, sealed.tag]


def _make_deks(store: TokenStore, fields: list[bytes]) -> list[bytes]:
    """Return at least one; no more are begun when it takes long: others need the thread too."""
    kek_id, count, name = fields
    cipher = KekCipher(name.decode())

    def wrap_all(plaintexts: Sequence[bytes], aad: bytes) -> list[Sealed]:
        return store.wrap_all(kek_id, plaintexts, aad, cipher, seconds=_MAKING_SECONDS)

    return kek_blobs.new_deks(wrap_all, cipher, kek_id, int(count))


def _unwrap(store: KeyStore, fields: list[bytes]) -> list[bytes]:
    kek_id, iv, ciphertext, tag, cipher, aad = fields
    sealed = Sealed(iv=iv, ciphertext=ciphertext, tag=tag, cipher=KekCipher(cipher.decode()))
    return [store.unwrap(kek_id, sealed, aad)]


def _destroy_kek(store: KeyStore, fields: list[bytes]) -> list[bytes]:
    kek_id, cipher = fields
    store.destroy_kek(kek_id, KekCipher(cipher.decode()))
    return []


def _generate_signing_key(store: KeyStore, fields: list[bytes]) -> list[bytes]:
    key_id, algorithm = fields
    key, created = store.generate_signing_key(key_id, KeyAlgorithm(algorithm.decode()))
    return [*worker_codec.encode_signing_key(key), worker_codec.encode_bool(created)]


def _signing_key(store: KeyStore, fields: list[bytes]) -> list[bytes]:
    (key_id,) = fields
    return worker_codec.encode_signing_key(store.signing_key(key_id))


def _sign(store: KeyStore, fields: list[bytes]) -> list[bytes]:
    key_id, algorithm, digest = fields
    return [store.sign(key_id, SignatureAlgorithm(algorithm.decode()), digest)]


def _sign_batch(store: KeyStore, fields: list[bytes]) -> list[bytes]:
    """Return the signatures, and how long they took."""
    key_id, algorithm, *digests = fields
    started = time.monotonic()
    signatures = store.sign_batch(key_id, SignatureAlgorithm(algorithm.decode()), digests)
    return [*signatures, worker_codec.encode_seconds(time.monotonic() - started)]


def _signing_keys(store: KeyStore, _: list[bytes]) -> list[bytes]:
    return worker_codec.encode_listed_keys(store.signing_keys())


def _inspect(store: KeyStore, _: list[bytes]) -> list[bytes]:
    return worker_codec.encode_inspected_keys(store.inspect())


def _destroy_signing_key(store: KeyStore, fields: list[bytes]) -> list[bytes]:
    key_id, public_key_sha256 = fields
    store.destroy_signing_key(key_id, public_key_sha256)
    return []


def _add_root(store: KeyStore, fields: list[bytes]) -> list[bytes]:
    return [worker_codec.encode_bool(store.add_root(TrustedRoot(*fields)))]


def _roots(store: KeyStore, _: list[bytes]) -> list[bytes]:
    return worker_codec.encode_roots(store.roots())


_HANDLERS: dict[Operation, Callable[[TokenStore, list[bytes]], list[bytes]]] = {
    Operation.LOAD_MODULE: _load_module,
    Operation.CONNECT: _connect,
    Operation.PROBE: _probe,
    Operation.SAME_PIN: _same_pin,
    Operation.SNAPSHOT: _snapshot,
    Operation.GENERATE_KEK: _generate_kek,
    Operation.WRAP: _wrap,
    Operation.MAKE_DEKS: _make_deks,
    Operation.UNWRAP: _unwrap,
    Operation.DESTROY_KEK: _destroy_kek,
    Operation.GENERATE_SIGNING_KEY: _generate_signing_key,
    Operation.SIGNING_KEY: _signing_key,
    Operation.SIGN: _sign,
    Operation.SIGN_BATCH: _sign_batch,
    Operation.SIGNING_KEYS: _signing_keys,
    Operation.INSPECT: _inspect,
    Operation.DESTROY_SIGNING_KEY: _destroy_signing_key,
    Operation.ADD_ROOT: _add_root,
    Operation.ROOTS: _roots,
}
