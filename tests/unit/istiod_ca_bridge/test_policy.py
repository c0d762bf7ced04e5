from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from istiod_ca_bridge.errors import NotServingError, RefusedRequestError
from istiod_ca_bridge.identity import workload_identity
from istiod_ca_bridge.policy import (
    MAX_CSR_BYTES,
    TtlPolicy,
    grant_workload,
    granted_lifetime,
    requested_key,
)
from istiod_ca_bridge.signer import key_der
from tests.unit.istiod_ca_bridge.doubles import NOW, PrivateKey, csr_of_unknown_version

TTL = TtlPolicy(default=timedelta(hours=24), maximum=timedelta(days=90))
P256 = ec.generate_private_key(ec.SECP256R1())
RSA = rsa.generate_private_key(65537, 2048)


def csr(
    key: PrivateKey | ed25519.Ed25519PrivateKey = P256, *extensions: x509.ExtensionType
) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, digest).public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize("key", [P256, ec.generate_private_key(ec.SECP384R1()), RSA])
def test_the_key_of_a_csr_that_its_owner_signed_is_taken(key: PrivateKey) -> None:
    assert key_der(requested_key(csr(key).decode())) == key_der(key.public_key())


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(65537, 1024),
        ec.generate_private_key(ec.SECP256K1()),
        ec.generate_private_key(ec.SECP521R1()),
        ed25519.Ed25519PrivateKey.generate(),
    ],
)
def test_a_weak_or_strange_key_is_refused(key: PrivateKey) -> None:
    with pytest.raises(RefusedRequestError, match="not allowed"):
        requested_key(csr(key).decode())


def test_a_csr_signed_by_another_key_is_refused() -> None:
    der = bytearray(x509.load_pem_x509_csr(csr(RSA)).public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    pem = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)

    with pytest.raises(RefusedRequestError, match="not made by the key"):
        requested_key(pem.decode())


def test_a_csr_that_asks_to_become_a_ca_is_refused() -> None:
    asks = csr(P256, x509.BasicConstraints(ca=True, path_length=None))

    with pytest.raises(RefusedRequestError, match="CA certificate"):
        requested_key(asks.decode())


def test_a_csr_that_says_it_is_no_ca_is_taken() -> None:
    requested_key(csr(P256, x509.BasicConstraints(ca=False, path_length=None)).decode())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        "x" * (MAX_CSR_BYTES + 1),
        "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        csr().decode() * 2,
        "\u00e9" + csr().decode(),
        csr().decode()[:-40],
    ],
)
def test_what_is_no_single_csr_is_refused(text: str) -> None:
    with pytest.raises(RefusedRequestError):
        requested_key(text)


@given(st.integers(0, 2000), st.integers(0, 255))
def test_a_csr_with_any_byte_changed_gives_its_own_key_or_a_refusal(at: int, byte: int) -> None:
    changed = bytearray(csr(RSA))
    changed[at % len(changed)] = byte
    try:
        key = requested_key(changed.decode("latin-1"))
    except RefusedRequestError:
        return
    assert key_der(key) == key_der(RSA.public_key())


def test_a_csr_of_an_unknown_version_is_refused() -> None:
    with pytest.raises(RefusedRequestError):
        requested_key(csr_of_unknown_version(csr()).decode())


def test_no_lifetime_asked_for_means_the_default() -> None:
    assert granted_lifetime(0, TTL) == timedelta(hours=24)
    assert granted_lifetime(3600, TTL) == timedelta(hours=1)
    assert granted_lifetime(90 * 86400, TTL) == timedelta(days=90)


@pytest.mark.parametrize("seconds", [90 * 86400 + 1, 1 << 62, -1, -(1 << 63)])
def test_a_lifetime_over_the_maximum_or_below_nothing_is_refused(seconds: int) -> None:
    with pytest.raises(RefusedRequestError):
        granted_lifetime(seconds, TTL)


def test_a_lifetime_over_the_maximum_is_cut_to_it_where_policy_clamps() -> None:
    clamping = TtlPolicy(timedelta(hours=24), timedelta(days=90), clamp=True)

    assert granted_lifetime(1 << 62, clamping) == timedelta(days=90)
    assert granted_lifetime(3600, clamping) == timedelta(hours=1)
    with pytest.raises(RefusedRequestError):
        granted_lifetime(-1, clamping)


@given(st.integers(0, 90 * 86400), st.floats(0, 1), st.floats(0, 0.5))
def test_jitter_shortens_a_lifetime_by_no_more_than_its_part(
    seconds: int, draw: float, jitter: float
) -> None:
    whole = granted_lifetime(seconds, TTL)

    granted = granted_lifetime(seconds, TtlPolicy(TTL.default, TTL.maximum, jitter=jitter), draw)

    assert whole * (1 - jitter) - timedelta(milliseconds=1) <= granted <= whole


def test_a_grant_begins_two_minutes_ago_and_never_outlives_the_ca() -> None:
    identity = workload_identity("cluster.local", "shop", "cart")
    end = NOW + timedelta(hours=3)

    grant = grant_workload(
        P256.public_key(), identity, timedelta(days=1), now=NOW, ca_not_after=end, serial=7
    )

    assert grant.not_before == NOW - timedelta(minutes=2)
    assert grant.not_after == end
    assert grant.uris == ("spiffe://cluster.local/ns/shop/sa/cart",)
    assert grant.dns_names == ()


def test_nothing_is_granted_under_an_expired_ca() -> None:
    identity = workload_identity("cluster.local", "shop", "cart")

    with pytest.raises(NotServingError):
        grant_workload(
            P256.public_key(), identity, timedelta(days=1), now=NOW, ca_not_after=NOW, serial=7
        )
