"""A stock agent's way to a certificate, over TLS, on a key that is resident in SoftHSM2."""

import socket
import ssl
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtensionOID
from google.protobuf import struct_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from istio_hsm_proto import istio_ca_pb2 as ca
from istio_hsm_proto.istio_ca_pb2_grpc import IstioCertificateServiceStub
from tests.integration.istiod_ca_bridge import harness
from tests.integration.istiod_ca_bridge.conftest import ServingMesh
from tests.support import pki

Status = grpc.StatusCode


def uris(certificate: x509.Certificate) -> list[str]:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.critical
    return names.value.get_values_for_type(x509.UniformResourceIdentifier)


def refusal(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details() or ""


def openssl_verifies(folder: Path, workload: harness.Workload) -> bool:
    for name, text in (
        ("leaf", workload.chain[0]),
        ("untrusted", "".join(workload.chain[1:-1])),
        ("root", workload.chain[-1]),
    ):
        (folder / f"{name}.pem").write_text(text)
    return (
        subprocess.run(
            [
                *("openssl", "verify", "-x509_strict", "-purpose", "sslserver"),
                *("-CAfile", "root.pem", "-untrusted", "untrusted.pem", "leaf.pem"),
            ],
            cwd=folder,
            capture_output=True,
            check=False,
        ).returncode
        == 0
    )


def test_a_token_gets_a_certificate_of_the_caller_s_identity_alone(serving: ServingMesh) -> None:
    workload = harness.create_certificate(serving.bridge, token=serving.tokens.token())

    assert uris(workload.leaf) == [harness.CALLER]
    assert workload.leaf.public_key() == workload.key.public_key()
    assert workload.leaf.subject == x509.Name([])
    assert len(workload.chain) == 3
    assert workload.chain[-1].encode() == serving.root.pem
    issuer = x509.load_pem_x509_certificate(workload.chain[1].encode())
    workload.leaf.verify_directly_issued_by(issuer)
    age = datetime.now(UTC) - workload.leaf.not_valid_before_utc
    assert timedelta(minutes=2) <= age < timedelta(minutes=3)


def test_openssl_verifies_the_chain_and_refuses_a_tampered_leaf(
    serving: ServingMesh, tmp_path: Path
) -> None:
    workload = harness.create_certificate(serving.bridge, token=serving.tokens.token())
    broken = pki.with_broken_signature(pki.Issued(workload.leaf, workload.key)).pem.decode()

    assert openssl_verifies(tmp_path, workload)
    assert not openssl_verifies(
        tmp_path, harness.Workload(workload.key, (broken, *workload.chain[1:]))
    )


def test_a_certificate_renews_itself_without_a_token(serving: ServingMesh) -> None:
    first = harness.create_certificate(serving.bridge, token=serving.tokens.token())

    second = harness.create_certificate(serving.bridge, client=first)

    assert uris(second.leaf) == [harness.CALLER]
    assert second.leaf.serial_number != first.leaf.serial_number
    assert "by=certificate" in serving.bridge.log


def test_an_rsa_csr_is_served_too(serving: ServingMesh) -> None:
    key = rsa.generate_private_key(65537, 2048)

    workload = harness.create_certificate(
        serving.bridge, token=serving.tokens.token(), csr=harness.csr_of(key)
    )

    assert workload.leaf.public_key() == key.public_key()


def test_the_lifetime_asked_for_is_granted_less_the_jitter(serving: ServingMesh) -> None:
    workload = harness.create_certificate(
        serving.bridge, token=serving.tokens.token(), seconds=3600
    )

    length = workload.leaf.not_valid_after_utc - workload.leaf.not_valid_before_utc
    assert timedelta(minutes=59) <= length <= timedelta(minutes=62)  # jitter: up to 5 %


def test_no_leaf_outlives_its_issuers(serving: ServingMesh) -> None:
    workload = harness.create_certificate(
        serving.bridge, token=serving.tokens.token(), seconds=89 * 86400
    )

    assert workload.leaf.not_valid_after_utc == serving.root.certificate.not_valid_after_utc


def test_a_lifetime_over_the_maximum_is_an_invalid_argument(serving: ServingMesh) -> None:
    code, details = refusal(
        lambda: harness.create_certificate(
            serving.bridge, token=serving.tokens.token(), seconds=90 * 86400 + 1
        )
    )

    assert (code, "over the maximum" in details) == (Status.INVALID_ARGUMENT, True)


def test_the_ca_s_own_csr_gets_no_leaf(serving: ServingMesh) -> None:
    own = harness.decrypted_csr(serving.plugin, serving.bridge)

    code, details = refusal(
        lambda: harness.create_certificate(
            serving.bridge,
            token=serving.tokens.token(),
            csr=own.public_bytes(serialization.Encoding.PEM).decode(),
        )
    )

    assert (code, "that of a CA of this mesh" in details) == (Status.INVALID_ARGUMENT, True)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"aud": ["https://kubernetes.default.svc"]}, "audience"),
        ({"exp": int(time.time()) - 3600}, "expired"),
        ({"iss": "https://else.test"}, "issuer"),
        ({"sub": "system:serviceaccount:istio-system:istiod"}, "ServiceAccount"),
    ],
)
def test_a_wrong_token_is_unauthenticated(
    serving: ServingMesh, changes: dict[str, Any], reason: str
) -> None:
    code, details = refusal(
        lambda: harness.create_certificate(serving.bridge, token=serving.tokens.token(**changes))
    )

    assert (code, reason in details) == (Status.UNAUTHENTICATED, True)


def test_another_issuer_s_token_is_unauthenticated(serving: ServingMesh) -> None:
    foreign = harness.token_issuer().token()

    code, _ = refusal(lambda: harness.create_certificate(serving.bridge, token=foreign))

    assert code is Status.UNAUTHENTICATED


def test_a_token_of_another_cluster_is_unauthenticated(serving: ServingMesh) -> None:
    code, details = refusal(
        lambda: harness.create_certificate(
            serving.bridge, token=serving.tokens.token(), cluster="east"
        )
    )

    assert (code, "cluster" in details) == (Status.UNAUTHENTICATED, True)


def test_a_caller_with_nothing_to_show_is_unauthenticated(serving: ServingMesh) -> None:
    code, _ = refusal(lambda: harness.create_certificate(serving.bridge))

    assert code is Status.UNAUTHENTICATED


def test_two_tokens_are_unauthenticated(serving: ServingMesh) -> None:
    bearer = f"Bearer {serving.tokens.token()}"
    with harness.ca_channel(serving.bridge) as channel:
        stub = IstioCertificateServiceStub(channel)
        request = ca.IstioCertificateRequest(
            csr=harness.csr_of(ec.generate_private_key(ec.SECP256R1()))
        )
        code, _ = refusal(
            lambda: stub.CreateCertificate(
                request,
                metadata=(("authorization", bearer), ("authorization", bearer)),
                timeout=10,
            )
        )

    assert code is Status.UNAUTHENTICATED


def foreign_workload(serving: ServingMesh, uri: str, issuer: pki.Issued) -> harness.Workload:
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
    issued = pki.issue("w", issuer, extensions=((names, True),))
    assert isinstance(issued.key, ec.EllipticCurvePrivateKey)
    return harness.Workload(issued.key, (issued.pem.decode(), serving.root.pem.decode()))


def test_a_foreign_client_certificate_does_not_pass_the_handshake(serving: ServingMesh) -> None:
    foreign = foreign_workload(serving, harness.CALLER, pki.root())

    code, _ = refusal(lambda: harness.create_certificate(serving.bridge, client=foreign))

    assert code is Status.UNAVAILABLE


def test_a_client_certificate_of_another_trust_domain_is_unauthenticated(
    serving: ServingMesh,
) -> None:
    foreign = foreign_workload(serving, "spiffe://else.test/ns/shop/sa/cart", serving.root)

    code, details = refusal(lambda: harness.create_certificate(serving.bridge, client=foreign))

    assert (code, "trust domain" in details) == (Status.UNAUTHENTICATED, True)


def test_a_csr_that_asks_to_become_a_ca_is_an_invalid_argument(serving: ServingMesh) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    csr = harness.csr_of(key, x509.BasicConstraints(ca=True, path_length=None))

    code, _ = refusal(
        lambda: harness.create_certificate(serving.bridge, token=serving.tokens.token(), csr=csr)
    )

    assert code is Status.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("csr", "status"),
    [
        ("garbage", Status.INVALID_ARGUMENT),
        ("x" * (17 << 10), Status.INVALID_ARGUMENT),
        ("x" * (65 << 10), Status.RESOURCE_EXHAUSTED),
        (harness.csr_of(rsa.generate_private_key(65537, 1024)), Status.INVALID_ARGUMENT),
        (harness.csr_of(ec.generate_private_key(ec.SECP521R1())), Status.INVALID_ARGUMENT),
    ],
    ids=["garbage", "17 KiB", "65 KiB", "RSA-1024", "P-521"],
)
def test_a_csr_that_is_too_weak_too_large_or_none_is_refused(
    serving: ServingMesh, csr: str, status: grpc.StatusCode
) -> None:
    code, _ = refusal(
        lambda: harness.create_certificate(serving.bridge, token=serving.tokens.token(), csr=csr)
    )

    assert code is status


def test_nobody_gets_another_s_identity(serving: ServingMesh) -> None:
    metadata = struct_pb2.Struct()
    metadata.update({"ImpersonatedIdentity": "spiffe://cluster.local/ns/bank/sa/vault"})
    key = ec.generate_private_key(ec.SECP256R1())
    with harness.ca_channel(serving.bridge) as channel:
        stub = IstioCertificateServiceStub(channel)
        code, _ = refusal(
            lambda: stub.CreateCertificate(
                ca.IstioCertificateRequest(csr=harness.csr_of(key), metadata=metadata),
                metadata=(("authorization", f"Bearer {serving.tokens.token()}"),),
                timeout=10,
            )
        )

    assert code is Status.PERMISSION_DENIED


def test_an_empty_cert_signer_in_the_metadata_is_what_agents_send(serving: ServingMesh) -> None:
    metadata = struct_pb2.Struct()
    metadata.update({"CertSigner": ""})
    key = ec.generate_private_key(ec.SECP256R1())
    with harness.ca_channel(serving.bridge) as channel:
        reply = IstioCertificateServiceStub(channel).CreateCertificate(
            ca.IstioCertificateRequest(csr=harness.csr_of(key), metadata=metadata),
            metadata=(("authorization", f"Bearer {serving.tokens.token()}"),),
            timeout=10,
        )

    assert len(reply.cert_chain) == 3


def test_health_is_served_to_anyone_who_trusts_the_root(serving: ServingMesh) -> None:
    with harness.ca_channel(serving.bridge) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        reply = stub.Check(
            health_pb2.HealthCheckRequest(service="istio.v1.auth.IstioCertificateService"),
            timeout=10,
        )

    assert reply.status == health_pb2.HealthCheckResponse.SERVING


def served_by(serving: ServingMesh, context: ssl.SSLContext) -> x509.Certificate:
    host, _, port = serving.bridge.address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="istiod.istio-system.svc") as tls,
    ):
        der = tls.getpeercert(binary_form=True)
        assert der is not None
        return x509.load_der_x509_certificate(der)


def test_the_server_s_own_certificate_names_it_and_chains_to_the_root(
    serving: ServingMesh,
) -> None:
    context = ssl.create_default_context(cafile=str(serving.bridge.root_file))
    context.set_alpn_protocols(["h2"])

    certificate = served_by(serving, context)

    names = certificate.extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME)
    assert isinstance(names.value, x509.SubjectAlternativeName)
    assert names.value.get_values_for_type(x509.DNSName) == [
        "istiod-ca-bridge.istio-system.svc",
        "istiod.istio-system.svc",
        "localhost",
    ]


def test_tls_below_1_2_is_refused(serving: ServingMesh) -> None:
    context = ssl.create_default_context(cafile=str(serving.bridge.root_file))
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1

    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        served_by(serving, context)


def test_after_all_that_the_bridge_still_serves(serving: ServingMesh) -> None:
    workload = harness.create_certificate(serving.bridge, token=serving.tokens.token())

    assert uris(workload.leaf) == [harness.CALLER]
