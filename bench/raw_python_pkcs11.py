"""What python-pkcs11 signs a second on the bare token: the usual way to a token from Python.

On one thread: it initialises the module for a single one, so that more of them end in errors or in
a crash. Arguments as of bench.raw_token; rates by kind and threads on stdout.
"""

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import pkcs11
from pkcs11.util.ec import encode_named_curve_parameters

from hsm_plugin.keys import SignatureAlgorithm
from hsm_plugin.pin_file import read_pin

_SECONDS = 2.0
_DIGEST = hashlib.sha256(b"bench").digest()
_DIGEST_INFO = SignatureAlgorithm.RSA_PKCS1_SHA256.digest_info + _DIGEST


def _rate(key: Any, data: bytes, mechanism: pkcs11.Mechanism) -> float:
    count, started = 0, time.perf_counter()
    while time.perf_counter() < started + _SECONDS:
        key.sign(data, mechanism=mechanism)
        count += 1
    return count / (time.perf_counter() - started)


def _main(module: str, label: str, pin_file: str) -> None:
    token = pkcs11.lib(module).get_token(token_label=label)
    with token.open(user_pin=read_pin(Path(pin_file)), rw=True) as session:
        _, rsa = session.generate_keypair(pkcs11.KeyType.RSA, 2048, store=True)
        curve = session.create_domain_parameters(
            pkcs11.KeyType.EC,
            {pkcs11.Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")},
            local=True,
        )
        _, elliptic = curve.generate_keypair(store=True)
        rates = {
            "RSA-2048, python-pkcs11": _rate(rsa, _DIGEST_INFO, pkcs11.Mechanism.RSA_PKCS),
            "P-256, python-pkcs11": _rate(elliptic, _DIGEST, pkcs11.Mechanism.ECDSA),
        }
    sys.stdout.write(json.dumps({name: {"1": round(rate)} for name, rate in rates.items()}))


if __name__ == "__main__":
    _main(*sys.argv[1:4])
