"""Where the bridge's time for a certificate goes: each step alone, in this process."""

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from istiod_ca_bridge.authn import (
    SignedTokenAuthenticator,
    key_set,
)
from istiod_ca_bridge.authority import new_serial
from istiod_ca_bridge.chain import pem_of
from istiod_ca_bridge.identity import workload_identity
from istiod_ca_bridge.issue import issue, issuer
from istiod_ca_bridge.log import event_log
from istiod_ca_bridge.policy import grant_workload, requested_key
from istiod_ca_bridge.signer import KeyAlgorithm, PublicKey
from tests.integration.istiod_ca_bridge import harness
from tests.support import pki
from tests.unit.istiod_ca_bridge.doubles import LocalSigner, ca_certificate, new_key

T = TypeVar("T")

_CAS_LIFE = timedelta(days=30)
_ROUNDS = 5
_TIMES = 400
_ALGORITHMS = (KeyAlgorithm.RSA_2048, KeyAlgorithm.ECDSA_P256)


@dataclasses.dataclass(frozen=True, slots=True)
class _Given:
    """A signer that has its one answer already, so that the HSM's part is not in the figure."""

    public_key: PublicKey
    signature: bytes

    async def sign(self, _: bytes) -> bytes:
        return self.signature


def micros(_: Path) -> dict[str, int]:
    """Return processor time by step, in microseconds, the best of some rounds."""
    now = datetime.now(UTC).replace(microsecond=0)
    csr = harness.csr_of(ec.generate_private_key(ec.SECP256R1()))
    tokens = harness.token_issuer()
    token = tokens.token()
    fresh = iter([tokens.token(jti=str(number)) for number in range(_ROUNDS * _TIMES)])
    known = _authenticator(tokens)
    costs = {
        "the CSR, checked": _cost(lambda: requested_key(csr)),
        "a token seen first": _cost(lambda: _run(known.authenticate(next(fresh)))),
        "a token again": _cost(lambda: _run(known.authenticate(token))),
    }
    for algorithm in _ALGORITHMS:
        costs |= _of_a_certificate(algorithm, csr, now)
    return {step: round(seconds * 1e6) for step, seconds in costs.items()}


def _of_a_certificate(algorithm: KeyAlgorithm, csr: str, now: datetime) -> dict[str, float]:
    key = LocalSigner(new_key(algorithm))
    ca = ca_certificate(
        key.public_key, pki.root(), not_before=now - timedelta(hours=1), not_after=now + _CAS_LIFE
    )
    grant = grant_workload(
        requested_key(csr),
        workload_identity(harness.TRUST_DOMAIN, "shop", "cart"),
        timedelta(hours=24),
        now=now,
        ca_not_after=ca.not_valid_after_utc,
        serial=new_serial(),
    )
    leaf = _run(issue(issuer(ca, key), grant))
    by = issuer(ca, _Given(key.public_key, leaf.signature))
    return {
        f"assembled and checked after signing, {algorithm.value}": _cost(
            lambda: _run(issue(by, grant))
        ),
        f"of that, the CA's signature verified, {algorithm.value}": _cost(
            lambda: by.verify(leaf.signature, leaf.tbs_certificate_bytes)
        ),
        f"the answer in PEM, {algorithm.value}": _cost(lambda: pem_of(leaf)),
        f"the log line, {algorithm.value}": _logged(leaf),
    }


def _logged(leaf: x509.Certificate) -> float:
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
        log = event_log("text")
        return _cost(
            lambda: log.info(
                "certificate.issued",
                identity=harness.CALLER,
                serial=f"{leaf.serial_number:x}",
                not_after=leaf.not_valid_after_utc,
                by="token",
                pod="cart-0",
                pod_uid="u2",
                agent="",
            )
        )


def _authenticator(tokens: harness.TokenIssuer) -> SignedTokenAuthenticator:
    keys = key_set(json.loads(tokens.jwks()))
    return SignedTokenAuthenticator(
        lambda: keys,
        harness.ISSUER,
        ("istio-ca",),
        harness.TRUST_DOMAIN,
        lambda: datetime.now(UTC),
    )


def _cost(step: Callable[[], object]) -> float:
    """Return the seconds of processor time that a step takes."""
    best = float("inf")
    for _ in range(_ROUNDS):
        before = time.process_time()
        for _ in range(_TIMES):
            step()
        best = min(best, (time.process_time() - before) / _TIMES)
    return best


def _run(step: Coroutine[None, None, T]) -> T:
    """Return what a coroutine returns that waits for nothing; a loop's own time is not its."""
    try:
        step.send(None)
    except StopIteration as end:
        found: T = end.value
        return found
    raise RuntimeError("the step waits")
