"""`bench`: what this token signs, what arrives over the socket, how many sidecars that renews."""

import asyncio
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import grpc

from hsm_plugin.errors import BadRequestError, HsmPluginError, HsmUnavailableError
from istio_hsm_proto import signing_v1_pb2 as pb
from istio_hsm_proto import signing_v1_pb2_grpc as pb_grpc

_DIGESTS = {
    pb.RSA_PKCS1_SHA256: hashlib.sha256(b"hsm-plugin bench").digest(),
    pb.ECDSA_SHA256: hashlib.sha256(b"hsm-plugin bench").digest(),
    pb.ECDSA_SHA384: hashlib.sha384(b"hsm-plugin bench").digest(),
    pb.ECDSA_SHA512: hashlib.sha512(b"hsm-plugin bench").digest(),
    pb.EDDSA_ED25519: b"hsm-plugin bench",
}
"""Of a text, so that no signature made here is one of a certificate."""

_SCHEMES: dict[int, pb.SignatureAlgorithm.ValueType] = {
    pb.RSA_2048: pb.RSA_PKCS1_SHA256,
    pb.RSA_3072: pb.RSA_PKCS1_SHA256,
    pb.RSA_4096: pb.RSA_PKCS1_SHA256,
    pb.ECDSA_P256: pb.ECDSA_SHA256,
    pb.ECDSA_P384: pb.ECDSA_SHA384,
    pb.ECDSA_P521: pb.ECDSA_SHA512,
    pb.ED25519: pb.EDDSA_ED25519,
}
_CONCURRENT = 16
_BATCHES = 4
_BATCH = 64
_THREADS = (1, 2, 4, 8, 16)
_PATIENCE_SECONDS = 60.0
MAX_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Bench:
    """What is measured. `key_id` empty: nothing is asked of the socket."""

    module: str
    tokens: str
    """As P11_TOKEN names them; the first that can be used is measured."""
    pin_file: str
    state_dir: str
    socket: Path
    key_id: str
    seconds: float
    lifetime_seconds: float

    def run(self) -> dict[str, object]:
        """Return the figures."""
        if not 0.1 <= self.seconds <= MAX_SECONDS:  # noqa: PLR2004 - said in the message
            raise BadRequestError(
                "--seconds must be 100ms to 30s", hint="each figure takes that long"
            )
        raw = self._raw()
        rates: dict[str, object] = {"raw": raw}
        best = max(
            (rate for by_threads in _by_kind(raw).values() for rate in by_threads.values()),
            default=0.0,
        )
        if self.key_id:
            over_socket = asyncio.run(self._over_socket())
            rates["over_socket"] = over_socket
            best = max(over_socket["Sign"], over_socket["SignBatch"])
        rates["renews_sidecars"] = int(best * self.lifetime_seconds / 2)
        rates["certificate_lifetime_seconds"] = self.lifetime_seconds
        return rates

    def _raw(self) -> dict[str, object]:
        for name, value in (
            ("P11_LIB", self.module),
            ("P11_TOKEN", self.tokens),
            ("P11_PIN_FILE", self.pin_file),
        ):
            if not value:
                raise BadRequestError(f"{name} is not set", hint="give it to bench as to serve")
        command = [
            *(sys.executable, "-m", "hsm_plugin.raw_rate", "--module", self.module),
            *("--tokens", self.tokens, "--pin-file", self.pin_file),
            *("--state-dir", self.state_dir or str(self.socket.absolute().parent)),
            *("--seconds", str(self.seconds), "--threads", *map(str, _THREADS)),
        ]
        limit = _PATIENCE_SECONDS + 2 * len(_THREADS) * self.seconds
        try:
            done = subprocess.run(command, capture_output=True, timeout=limit, check=False)
            told: dict[str, object] = json.loads(done.stdout)
        except (subprocess.TimeoutExpired, ValueError):
            raise HsmUnavailableError(
                "the PKCS#11 module hung or crashed while it was measured",
                hint="run `hsm-plugin doctor`",
            ) from None
        if "error" in told:
            raise HsmUnavailableError(str(told["error"]), hint=str(told["hint"]))
        return told

    async def _over_socket(self) -> dict[str, float]:
        async with grpc.aio.insecure_channel(f"unix:{self.socket.absolute()}") as channel:
            stub = pb_grpc.SigningServiceStub(channel)
            key_id = self.key_id.encode()
            try:
                key = (
                    await stub.GetPublicKey(pb.GetPublicKeyRequest(key_id=key_id), timeout=10)
                ).key
                scheme = _SCHEMES[key.algorithm]
                digest = _DIGESTS[scheme]
                one = pb.SignRequest(key_id=key_id, algorithm=scheme, digest=digest)
                many = pb.SignBatchRequest(
                    key_id=key_id, algorithm=scheme, digests=[digest] * _BATCH
                )
                return {
                    "Sign": await self._calls(lambda: stub.Sign(one), _CONCURRENT),
                    "SignBatch": _BATCH * await self._calls(lambda: stub.SignBatch(many), _BATCHES),
                }
            except grpc.aio.AioRpcError as error:
                raise HsmPluginError(
                    f"{error.details()} [{error.code().name}]",
                    hint="`hsm-plugin list-keys` names the keys; is the plugin running?",
                ) from None

    async def _calls(self, call: Callable[[], Awaitable[object]], concurrent: int) -> float:
        """Return the calls a second of so many callers."""
        await call()
        count, started = 0, time.perf_counter()

        async def caller() -> None:
            nonlocal count
            while time.perf_counter() - started < self.seconds:
                await call()
                count += 1

        await asyncio.gather(*(caller() for _ in range(concurrent)))
        return round(count / (time.perf_counter() - started), 1)


def as_text(figures: dict[str, object]) -> str:
    """Return the figures for people."""
    raw = figures["raw"]
    model = str(raw["model"]) if isinstance(raw, dict) else ""
    lines = [f"token: {model}"]
    for kind, by_threads in _by_kind(raw).items():
        told = ", ".join(f"{rate:g}/s at {threads}" for threads, rate in by_threads.items())
        lines.append(f"C_Sign {kind}, by threads: {told}")
    over_socket = figures.get("over_socket")
    if isinstance(over_socket, dict):
        lines.append(f"over the socket: Sign {over_socket['Sign']:g}/s at {_CONCURRENT} callers")
        lines.append(f"over the socket: SignBatch of {_BATCH} {over_socket['SignBatch']:g}/s")
    else:
        lines.append("over the socket: not measured; name a signing key with --key-id")
    lifetime = figures["certificate_lifetime_seconds"]
    hours = lifetime / 3600 if isinstance(lifetime, float) else 0
    lines.append(
        f"renews at most {figures['renews_sidecars']} sidecars, if each certificate lives "
        f"{hours:g} h, is renewed at half of that, and nothing else is signed"
    )
    if model.startswith("SoftHSM"):
        lines.append("These are figures of SoftHSM on this machine. They are not a Luna's.")
    return "\n".join(lines)


def _by_kind(raw: object) -> dict[str, dict[str, float]]:
    kept = raw["signatures_per_second_by_threads"] if isinstance(raw, dict) else {}
    return kept if isinstance(kept, dict) else {}
