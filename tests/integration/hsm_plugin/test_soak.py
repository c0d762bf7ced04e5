"""Eight clients at once, every answer checked, and nothing that grows."""

import hashlib
import itertools
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from istio_hsm_proto import kms_istio_v1_pb2 as kms
from istio_hsm_proto import signing_v1_pb2 as sign
from istio_hsm_proto.kms_istio_v1_pb2_grpc import KeyManagementServiceStub
from istio_hsm_proto.signing_v1_pb2_grpc import SigningServiceStub
from tests.support import pki
from tests.support import plugin as plugins
from tests.support.pki import Issued
from tests.support.plugin import Plugin
from tests.support.softhsm import SoftHsm

SECONDS = float(os.environ.get("HSM_SOAK_SECONDS", "30"))
CLIENTS = 8
_GRPC_THREAD = "event_engine"
_MAX_GRPC_THREADS = 16
INVALID = grpc.StatusCode.INVALID_ARGUMENT


@dataclass(frozen=True, slots=True)
class Fixed:
    """What all clients share."""

    dek: bytes
    skey: bytes
    pem: bytes = field(repr=False)
    public_key: ec.EllipticCurvePublicKey
    root: Issued
    mesh_ca: Issued
    workload: Issued


@dataclass(slots=True)
class Client:
    """One client: its calls, each with the check of its answer."""

    keys: KeyManagementServiceStub
    signing: SigningServiceStub
    fixed: Fixed
    dice: random.Random
    counts: Counter[str] = field(default_factory=Counter)

    def round_trip(self) -> None:
        plaintext = self.dice.randbytes(self.dice.randrange(2000))
        aad = self.dice.randbytes(self.dice.randrange(1, 50))
        sealed = self._encrypt(self.fixed.dek, plaintext, aad)
        assert self._decrypt(self.fixed.dek, sealed, aad) == plaintext
        expect(INVALID, lambda: self._decrypt(self.fixed.dek, sealed, aad + b"!"))

    def new_dek(self) -> None:
        blob = self.keys.GenerateDEK(kms.GenerateDEKRequest(kek_kid=b"k")).encrypted_dek_blob
        sealed = self._encrypt(blob, b"plaintext", b"aad")
        assert self._decrypt(blob, sealed, b"aad") == b"plaintext"
        expect(INVALID, lambda: self._decrypt(self.fixed.dek, sealed, b"aad"))

    def load_key(self) -> None:
        response = self.keys.LoadSKey(
            kms.LoadSKeyRequest(
                kek_kid=b"k",
                encrypted_dek_blob=self.fixed.dek,
                encrypted_skey_blob=self.fixed.skey,
            )
        )
        assert response.plaintext_skey == self.fixed.pem

    def sign_digest(self) -> None:
        message = self.dice.randbytes(32)
        request = sign.SignRequest(
            key_id=b"soak",
            algorithm=sign.ECDSA_SHA256,
            digest=hashlib.sha256(message).digest(),
        )
        signature = self.signing.Sign(request).signature
        self.fixed.public_key.verify(signature, message, ec.ECDSA(hashes.SHA256()))

    def verify_chain(self) -> None:
        sound = [self.fixed.root.pem, self.fixed.mesh_ca.der, self.fixed.workload.der]
        request = kms.VerifyCertChainRequest(certificates=sound)
        assert self.keys.VerifyCertChain(request).successful_verification
        broken = kms.VerifyCertChainRequest(certificates=[sound[0], sound[2]])
        expect(INVALID, lambda: self.keys.VerifyCertChain(broken))

    def find_kek(self) -> None:
        assert self.keys.GenerateKEK(kms.GenerateKEKRequest(kek_kid=b"k")).kek_kid == b"k"

    def miss(self) -> None:
        missing = kms.GenerateDEKRequest(kek_kid=b"gone")
        expect(grpc.StatusCode.NOT_FOUND, lambda: self.keys.GenerateDEK(missing))
        changed = self.fixed.dek[:-30] + b"A" * 30
        expect(INVALID, lambda: self._decrypt(changed, self.fixed.skey, b""))

    def work(self, deadline: float) -> Counter[str]:
        calls = (
            self.round_trip,
            self.new_dek,
            self.load_key,
            self.sign_digest,
            self.verify_chain,
            self.find_kek,
            self.miss,
        )
        while time.monotonic() < deadline:
            call = self.dice.choice(calls)
            call()
            self.counts[call.__name__] += 1
        return self.counts

    def _encrypt(self, dek: bytes, plaintext: bytes, aad: bytes) -> bytes:
        return self.keys.AuthenticatedEncrypt(
            kms.AuthenticatedEncryptRequest(
                kek_kid=b"k", encrypted_dek_blob=dek, plaintext=plaintext, aad=aad
            )
        ).ciphertext

    def _decrypt(self, dek: bytes, ciphertext: bytes, aad: bytes) -> bytes:
        return self.keys.AuthenticatedDecrypt(
            kms.AuthenticatedDecryptRequest(
                kek_kid=b"k", encrypted_dek_blob=dek, ciphertext=ciphertext, aad=aad
            )
        ).plaintext


def expect(status: grpc.StatusCode, call: Callable[[], object]) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert caught.value.code() is status


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process holds at one moment."""

    files: int
    threads: int
    """Without those of gRPC's event engine, which adds one when its pool is busy for a while."""
    grpc_threads: int
    resident_kib: int


def usage(plugin: Plugin) -> Usage:
    process = Path("/proc") / str(plugin.pid)
    status = dict(
        line.split(":", 1) for line in (process / "status").read_text().splitlines() if ":" in line
    )
    names = [name for task in (process / "task").iterdir() if (name := _name(task))]
    return Usage(
        files=len(list((process / "fd").iterdir())),
        threads=len(names) - names.count(_GRPC_THREAD),
        grpc_threads=names.count(_GRPC_THREAD),
        resident_kib=int(status["VmRSS"].split()[0]),
    )


def _name(task: Path) -> str:
    try:
        return (task / "comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):  # the thread has just ended
        return ""


def prepare(keys: KeyManagementServiceStub, signing: SigningServiceStub) -> Fixed:
    keys.GenerateKEK(kms.GenerateKEKRequest(kek_kid=b"k"))
    dek = keys.GenerateDEK(kms.GenerateDEKRequest(kek_kid=b"k")).encrypted_dek_blob
    skey = keys.GenerateSKey(
        kms.GenerateSKeyRequest(size=2048, kind=kms.RSA, kek_kid=b"k", encrypted_dek_blob=dek)
    ).encrypted_skey_blob
    pem = keys.LoadSKey(
        kms.LoadSKeyRequest(kek_kid=b"k", encrypted_dek_blob=dek, encrypted_skey_blob=skey)
    ).plaintext_skey
    key = signing.GenerateSigningKey(
        sign.GenerateSigningKeyRequest(key_id=b"soak", algorithm=sign.ECDSA_P256)
    ).key
    public_key = serialization.load_der_public_key(key.public_key)
    assert isinstance(public_key, ec.EllipticCurvePublicKey)
    root = pki.root(valid_until=pki.MOMENT + timedelta(days=30))
    mesh_ca = pki.intermediate(root)
    keys.ImportCACert(kms.ImportCACertRequest(ca_cert_blob=root.pem))
    return Fixed(dek, skey, pem, public_key, root, mesh_ca, pki.leaf(mesh_ca))


def watch(plugin: Plugin, deadline: float, stop: threading.Event) -> list[Usage]:
    """Return samples over the run, evenly spread."""
    samples = []
    while time.monotonic() < deadline and not stop.wait(max(SECONDS / 100, 0.05)):
        samples.append(usage(plugin))
    return samples


@pytest.mark.timeout(SECONDS + 90)
def test_eight_clients_at_once_get_right_answers_only_and_nothing_grows(
    hsm: SoftHsm, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stop = threading.Event()
    with plugins.running(hsm, folder) as plugin:
        with plugin.keys() as keys, plugin.signing() as signing:
            fixed = prepare(keys, signing)

        def run(number: int, deadline: float) -> Counter[str]:
            with plugin.channel() as channel:
                stubs = KeyManagementServiceStub(channel), SigningServiceStub(channel)
                return Client(*stubs, fixed, random.Random(number)).work(deadline)  # noqa: S311 - picks calls

        def crowd(seconds: float) -> tuple[Counter[str], list[Usage]]:
            deadline = time.monotonic() + seconds
            with ThreadPoolExecutor(CLIENTS + 1) as pool:
                watching = pool.submit(watch, plugin, deadline, stop)
                try:
                    counts = pool.map(run, range(CLIENTS), [deadline] * CLIENTS)
                    return sum(counts, Counter[str]()), watching.result()
                finally:
                    stop.set()

        crowd(1.0)  # brings the threads and sessions that stay
        stop.clear()
        at_rest_before = settled(plugin)
        counts, samples = crowd(SECONDS)
        at_rest_after = settled(plugin)
        assert plugin.health() == plugins.SERVING
        assert not plugin.events("rpc.failed")
        assert not plugin.events("token.unavailable")
        assert plugin.stop() == 0

    assert len(counts) == 7
    assert len(samples) >= 10
    early, late = samples[len(samples) // 10 : len(samples) // 2], samples[len(samples) // 2 :]
    # Under load the token's files come and go: what counts is what stays open afterwards.
    assert at_rest_after.files <= at_rest_before.files
    assert max(it.threads for it in late) <= max(it.threads for it in early)
    assert max(entry.grpc_threads for entry in samples) <= _MAX_GRPC_THREADS
    grown = max(entry.resident_kib for entry in late) - max(entry.resident_kib for entry in early)
    with capsys.disabled():
        sys.stdout.write(f" soak: {counts.total()} steps in {SECONDS:g} s, RSS {grown:+} KiB ")


@pytest.mark.timeout(120)
def test_clients_that_come_and_go_leave_no_file_and_no_thread_behind(
    hsm: SoftHsm, folder: Path
) -> None:
    with plugins.running(hsm, folder) as plugin:

        def visit(_: int) -> None:
            with plugin.keys() as stub:
                request = kms.GenerateKEKRequest(kek_kid=b"k")
                assert stub.GenerateKEK(request, timeout=30).kek_kid == b"k"

        def crowd() -> Usage:
            with ThreadPoolExecutor(CLIENTS) as pool:
                list(pool.map(visit, range(100)))
            return settled(plugin)

        before = crowd()
        after = crowd()
        assert after.files <= before.files
        assert after.threads <= before.threads


def settled(plugin: Plugin) -> Usage:
    """Return the usage once the connections of clients who left are closed."""
    for _ in itertools.count():
        first = usage(plugin)
        time.sleep(0.2)
        second = usage(plugin)
        if (first.files, first.threads) == (second.files, second.threads):
            return second
    raise AssertionError
