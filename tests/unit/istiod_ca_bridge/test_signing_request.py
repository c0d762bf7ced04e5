from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from istiod_ca_bridge.errors import ForbiddenError, RefusedRequestError
from istiod_ca_bridge.policy import Grant, TtlPolicy
from istiod_ca_bridge.signing_request import (
    USAGES,
    SigningPolicy,
    SigningRequest,
    grant_request,
    granted,
    istiod_dns_names,
    user_name,
)
from tests.unit.istiod_ca_bridge.doubles import NOW

ISTIOD = "system:serviceaccount:istio-system:istiod"
CART = "spiffe://cluster.local/ns/shop/sa/cart"
TTL = TtlPolicy(timedelta(hours=24), timedelta(days=90))
POLICY = SigningPolicy(
    requestors=frozenset({ISTIOD}),
    trust_domains=frozenset({"cluster.local", "old.local"}),
    dns_names=istiod_dns_names("istio-system", ("istiod.istio-system.svc",)),
    ttl=TTL,
)


def uri(value: str) -> x509.GeneralName:
    return x509.UniformResourceIdentifier(value)


def csr(
    *names: x509.GeneralName, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None
) -> str:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
    signed = builder.sign(key or ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM).decode()


def request(
    csr_pem: str,
    *,
    requestor: str = ISTIOD,
    usages: frozenset[str] = USAGES,
    lifetime: timedelta | None = None,
) -> SigningRequest:
    return SigningRequest(
        name="csr-workload-x",
        version="1",
        signer="mesh.example.com/hsm",
        requestor=requestor,
        csr_pem=csr_pem,
        usages=usages,
        lifetime=lifetime,
        document={},
    )


def decided(asked: SigningRequest, policy: SigningPolicy = POLICY) -> Grant:
    return grant_request(asked, policy, now=NOW, ca_not_after=NOW + timedelta(days=365), serial=7)


@pytest.mark.parametrize("domain", ["cluster.local", "old.local"])
def test_a_workload_gets_the_one_identity_that_was_approved(domain: str) -> None:
    grant = decided(request(csr(uri(f"spiffe://{domain}/ns/shop/sa/cart"))))

    assert (grant.uris, grant.dns_names) == ((f"spiffe://{domain}/ns/shop/sa/cart",), ())
    assert grant.not_after == NOW.replace(microsecond=0) + TTL.default


def test_istiod_gets_its_own_dns_names() -> None:
    names = ("istiod.istio-system.svc", "istiod-remote.istio-system.svc")
    grant = decided(request(csr(*(x509.DNSName(name) for name in names))))

    assert (grant.uris, grant.dns_names) == ((), names)


@pytest.mark.parametrize(
    ("asked", "got"),
    [
        (None, TTL.default),
        (timedelta(0), TTL.default),
        (timedelta(minutes=10), timedelta(minutes=10)),
        (timedelta(days=3650), TTL.maximum),
    ],
)
def test_a_lifetime_is_cut_to_the_maximum(asked: timedelta | None, got: timedelta) -> None:
    assert granted(asked, TTL) == got


@pytest.mark.parametrize(
    "names",
    [
        (uri("spiffe://evil.test/ns/shop/sa/cart"),),
        (x509.DNSName("istiod.istio-system.svc"), x509.DNSName("kubernetes.default.svc")),
        (x509.DNSName("*.istio-system.svc"),),
    ],
)
def test_a_name_that_is_not_the_meshs_is_forbidden(names: tuple[x509.GeneralName, ...]) -> None:
    with pytest.raises(ForbiddenError):
        decided(request(csr(*names)))


@pytest.mark.parametrize(
    "names",
    [
        (),
        (uri(CART), uri("spiffe://cluster.local/ns/shop/sa/other")),
        (uri(CART), uri(CART)),
        (uri(CART), x509.DNSName("istiod.istio-system.svc")),
        (x509.DNSName("istiod.istio-system.svc"), x509.RFC822Name("a@example.com")),
        (uri("https://cluster.local/ns/shop/sa/cart"),),
        (uri("spiffe://cluster.local/ns/shop"),),
        (uri("spiffe://cluster.local/ns/Shop/sa/cart"),),
    ],
)
def test_a_csr_without_exactly_one_identity_is_refused(
    names: tuple[x509.GeneralName, ...],
) -> None:
    with pytest.raises(RefusedRequestError):
        decided(request(csr(*names)))


@pytest.mark.parametrize(
    "usages",
    [
        frozenset[str](),
        USAGES | {"cert sign"},
        USAGES | {"any"},
        USAGES - {"server auth"},
    ],
)
def test_usages_other_than_the_meshs_are_refused(usages: frozenset[str]) -> None:
    with pytest.raises(RefusedRequestError, match="usages"):
        decided(request(csr(uri(CART)), usages=usages))


@pytest.mark.parametrize(
    "requestor",
    ["system:serviceaccount:istio-system:other", "system:admin", "", f"{ISTIOD}x"],
)
def test_who_is_not_an_istiod_of_this_mesh_gets_nothing(requestor: str) -> None:
    with pytest.raises(ForbiddenError):
        decided(request(csr(uri(CART)), requestor=requestor))


def test_a_weak_key_a_foreign_signature_and_garbage_are_refused() -> None:
    good = csr(uri(CART))
    der = bytearray(x509.load_pem_x509_csr(good.encode()).public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    forged = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM).decode()
    weak = csr(uri(CART), key=rsa.generate_private_key(65537, 1024))
    for wrong in (forged, weak, "", "garbage", good * 2, good[: len(good) // 2]):
        with pytest.raises(RefusedRequestError):
            decided(request(wrong))
    assert decided(request(good)).serial == 7


def test_an_account_is_spelt_as_namespace_and_name() -> None:
    assert user_name("istio-system/istiod-1-32") == (
        "system:serviceaccount:istio-system:istiod-1-32"
    )
    for wrong in ("istiod", "a/b/c", "A/b", "/b", "a/", "a:b/c"):
        with pytest.raises(ValueError, match="is not <namespace>/<service account>"):
            user_name(wrong)
