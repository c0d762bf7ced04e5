"""A process of its own that measures C_Sign of the token, with keys that end with their session.

It logs in with the PIN of the file, under the same guard as the plugin: a value that was refused
is not tried again.
"""

import argparse
import json
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hsm_plugin import core_dumps, token_reference
from hsm_plugin.cryptoki import Cryptoki, CryptokiError, Template
from hsm_plugin.errors import HsmPluginError, UnsupportedError
from hsm_plugin.keys import KeyAlgorithm, SignatureAlgorithm
from hsm_plugin.pin_file import read_pin
from hsm_plugin.pin_guard import PinGuard
from hsm_plugin.pkcs11_store_constants import Attribute, Mechanism
from hsm_plugin.pkcs11_store_objects import key_pair_templates
from hsm_plugin.pkcs11_store_token import TokenConnection

_ROOM_BYTES = 1024


@dataclass(frozen=True, slots=True)
class _Kind:
    """A key, and how it signs."""

    key: KeyAlgorithm
    signature: Mechanism
    data: bytes


_KINDS = {
    "ECDSA P-256": _Kind(KeyAlgorithm.ECDSA_P256, Mechanism.ECDSA, bytes(32)),
    "RSA-2048": _Kind(
        KeyAlgorithm.RSA_2048,
        Mechanism.RSA_PKCS,
        SignatureAlgorithm.RSA_PKCS1_SHA256.digest_info + bytes(32),
    ),
}


def main(arguments: Sequence[str]) -> None:
    """Write the rates, or the error, to standard output as JSON."""
    options = _parser().parse_args(arguments)
    core_dumps.forbid()  # one would hold the PIN
    try:
        told = _measured(options)
    except HsmPluginError as error:
        told = {"error": str(error), "hint": error.hint}
    except CryptokiError as error:
        told = {"error": f"the token failed: {error}", "hint": "check the HSM and its client"}
    sys.stdout.write(json.dumps(told))


def _measured(options: argparse.Namespace) -> dict[str, object]:
    token = TokenConnection(
        options.module,
        token_reference.parse_list(options.tokens),
        lambda: read_pin(options.pin_file),
        PinGuard(options.state_dir / "pin-guard.json"),
    )
    identity = token.connect()
    rates: dict[str, dict[str, float]] = {}
    for name, kind in _KINDS.items():
        mechanism, *_ = key_pair_templates(b"bench", kind.key)
        try:
            for needed in (mechanism, kind.signature):
                token.require(needed, "the measurement")
        except UnsupportedError:
            continue
        rates[name] = {
            str(threads): _rate(token.cryptoki, identity.slot_id, kind, threads, options.seconds)
            for threads in options.threads
            if threads < identity.session_limit
        }
    token.close()
    return {"model": identity.model, "signatures_per_second_by_threads": rates}


def _rate(cryptoki: Cryptoki, slot: int, kind: _Kind, threads: int, seconds: float) -> float:
    """Return the signatures a second of so many sessions, one a thread."""
    owner = cryptoki.open_session(slot)
    mechanism, public, private = key_pair_templates(b"bench", kind.key)
    passing: Template = {Attribute.TOKEN: False}
    _, key = cryptoki.generate_key_pair(
        owner, mechanism, {**public, **passing}, {**private, **passing}
    )
    counts, failures = [0] * threads, list[CryptokiError]()
    end = time.perf_counter() + seconds

    def work(index: int) -> None:
        try:
            session = cryptoki.open_session(slot)
            while time.perf_counter() < end:
                cryptoki.sign(session, key, kind.signature, None, kind.data, _ROOM_BYTES)
                counts[index] += 1
            cryptoki.close_session(session)
        except CryptokiError as error:
            failures.append(error)

    workers = [threading.Thread(target=work, args=(index,)) for index in range(threads)]
    started = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    took = time.perf_counter() - started
    cryptoki.close_session(owner)  # and the key with it
    if failures:
        raise failures[0]
    return round(sum(counts) / took, 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hsm-plugin bench")
    parser.add_argument("--module", required=True)
    parser.add_argument("--tokens", required=True)
    parser.add_argument("--pin-file", type=Path, required=True)
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--threads", type=int, nargs="+", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
