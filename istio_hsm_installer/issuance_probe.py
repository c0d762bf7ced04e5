"""Asks the mesh's CA for certificates as a sidecar does; the only user of its contract."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from istio_hsm_installer import certificates
from istio_hsm_installer.config import Secret
from istio_hsm_installer.drill import OK, Sample
from istio_hsm_proto import istio_ca_pb2 as pb
from istio_hsm_proto.istio_ca_pb2_grpc import IstioCertificateServiceStub

WRONG = "WRONG_CERTIFICATE"
_MAX_SAMPLES = 100_000
_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.use_local_subchannel_pool", 1),
)


@dataclass(frozen=True, slots=True)
class Asking:
    """Whom to ask, as whom, and how often."""

    address: str
    server_name: str
    root_pem: bytes
    token: Secret
    every_seconds: float
    timeout_seconds: float


@contextmanager
def asking(wanted: Asking) -> Iterator[Sequence[Sample]]:
    """Yield the growing list of samples; the asking ends with the block."""
    samples: list[Sample] = []
    is_over = threading.Event()
    thread = threading.Thread(target=_ask, args=(wanted, samples, is_over), daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        is_over.set()
        thread.join(wanted.timeout_seconds + 1)


def _ask(wanted: Asking, samples: list[Sample], is_over: threading.Event) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    request = pb.IstioCertificateRequest(csr=_csr(key), validity_duration=600)
    metadata = (("authorization", f"Bearer {wanted.token.text()}"),)
    credentials = grpc.ssl_channel_credentials(wanted.root_pem)
    options = (*_OPTIONS, ("grpc.ssl_target_name_override", wanted.server_name))
    with grpc.secure_channel(wanted.address, credentials, options) as channel:
        stub = IstioCertificateServiceStub(channel)
        while len(samples) < _MAX_SAMPLES:
            asked = time.monotonic()
            try:
                reply = stub.CreateCertificate(
                    request, timeout=wanted.timeout_seconds, metadata=metadata
                )
                status = OK if _is_for(reply.cert_chain, key) else WRONG
            except grpc.RpcError as error:
                # What a blocking stub raises is a Call too, which the stubs' types cannot say.
                status = cast("grpc.Call", error).code().name
            samples.append(Sample(asked, time.monotonic(), status))
            if is_over.wait(wanted.every_seconds):
                return


def _csr(key: ec.EllipticCurvePrivateKey) -> str:
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return csr.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def _is_for(chain: Sequence[str], key: ec.EllipticCurvePrivateKey) -> bool:
    leaf = certificates.read(chain[0].encode())[:1] if chain else []
    return [entry.public_key() for entry in leaf] == [key.public_key()]
