from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from istio_hsm_installer import ceremony
from istio_hsm_installer.errors import InputError, RefusedError

NOW = datetime(2030, 1, 1, tzinfo=UTC)
YEAR = timedelta(days=365)
CaKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


@dataclass(frozen=True)
class Root:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, text)])


def make_root(*, ca: bool = True, lifetime: timedelta = 10 * YEAR) -> Root:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name("root"))
        .issuer_name(name("root"))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - YEAR)
        .not_valid_after(NOW + lifetime)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Root(certificate, key)


def csr_pem(key: CaKey) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(name("cluster.local"))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.fixture(scope="module")
def ca_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture
def request_(ca_key: rsa.RSAPrivateKey) -> ceremony.Request:
    return ceremony.load_request(csr_pem(ca_key))


@pytest.fixture(scope="module")
def root() -> Root:
    return make_root()


def signed(request_: ceremony.Request, root: Root) -> x509.Certificate:
    return ceremony.sign(request_, root.certificate, root.key, lifetime=YEAR, now=NOW)


def test_a_request_shows_whose_key_it_is_for(request_: ceremony.Request) -> None:
    assert request_.subject == "O=cluster.local"
    assert request_.key_kind == "RSA-2048"
    assert len(request_.key_sha256) == 64


def test_a_request_whose_signature_was_changed_is_refused(ca_key: rsa.RSAPrivateKey) -> None:
    der = bytearray(
        x509.load_pem_x509_csr(csr_pem(ca_key)).public_bytes(serialization.Encoding.DER)
    )
    der[-1] ^= 1
    changed = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(RefusedError, match="not signed by the key"):
        ceremony.load_request(changed)


@pytest.mark.parametrize("pem", [b"", b"garbage", b"-----BEGIN CERTIFICATE REQUEST-----\n"])
def test_what_is_no_request_is_told_with_the_command_that_makes_one(pem: bytes) -> None:
    with pytest.raises(InputError) as caught:
        ceremony.load_request(pem)
    assert "decrypt-csr" in caught.value.hint


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(public_exponent=65537, key_size=1024),
        ec.generate_private_key(ec.SECP256K1()),
    ],
    ids=["rsa-1024", "secp256k1"],
)
def test_a_weak_or_unknown_key_is_refused(key: CaKey) -> None:
    with pytest.raises(RefusedError, match="weak"):
        ceremony.load_request(csr_pem(key))


def test_the_certificate_comes_from_policy_with_every_extension_in_sight(
    request_: ceremony.Request, root: Root
) -> None:
    certificate = signed(request_, root)

    extensions = certificate.extensions
    constraints = extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value == x509.BasicConstraints(ca=True, path_length=0)
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert (usage.value.key_cert_sign, usage.value.crl_sign) == (True, True)
    assert len(extensions) == 4  # and the two key identifiers
    assert certificate.public_key() == request_.key
    assert certificate.not_valid_after_utc == NOW + YEAR
    certificate.verify_directly_issued_by(root.certificate)


def test_the_certificate_never_outlives_its_root(request_: ceremony.Request) -> None:
    root = make_root(lifetime=timedelta(days=30))
    assert signed(request_, root).not_valid_after_utc == NOW + timedelta(days=30)


def test_a_root_that_is_no_ca_signs_nothing(request_: ceremony.Request) -> None:
    with pytest.raises(RefusedError, match="not a CA"):
        signed(request_, make_root(ca=False))


def test_an_expired_root_signs_nothing(request_: ceremony.Request) -> None:
    with pytest.raises(RefusedError, match="expired"):
        signed(request_, make_root(lifetime=timedelta(seconds=-1)))


def test_a_root_key_of_another_root_is_told(request_: ceremony.Request, root: Root) -> None:
    with pytest.raises(InputError, match="does not belong"):
        signed(request_, Root(root.certificate, make_root().key))


def test_a_chain_that_answers_the_request_passes(request_: ceremony.Request, root: Root) -> None:
    chain = [signed(request_, root), root.certificate]
    ceremony.check_chain(chain, request_, now=NOW)
    assert ceremony.load_chain(ceremony.to_pem(chain)) == chain


def test_a_chain_for_another_key_is_refused(root: Root, request_: ceremony.Request) -> None:
    other = ceremony.load_request(csr_pem(ec.generate_private_key(ec.SECP256R1())))
    chain = [signed(other, root), root.certificate]
    with pytest.raises(RefusedError, match="another key"):
        ceremony.check_chain(chain, request_, now=NOW)


def test_a_chain_in_the_wrong_order_is_refused(root: Root, request_: ceremony.Request) -> None:
    with pytest.raises(RefusedError, match="another key"):
        ceremony.check_chain([root.certificate, signed(request_, root)], request_, now=NOW)


def test_a_chain_under_a_namesake_of_the_root_is_refused(
    root: Root, request_: ceremony.Request
) -> None:
    chain = [signed(request_, root), make_root().certificate]
    with pytest.raises(RefusedError, match="was not signed by"):
        ceremony.check_chain(chain, request_, now=NOW)


def test_an_expired_chain_is_refused(root: Root, request_: ceremony.Request) -> None:
    chain = [signed(request_, root), root.certificate]
    with pytest.raises(RefusedError, match="expired"):
        ceremony.check_chain(chain, request_, now=NOW + 2 * YEAR)


def test_a_chain_without_its_root_is_refused(root: Root, request_: ceremony.Request) -> None:
    with pytest.raises(RefusedError, match="fewer than two"):
        ceremony.check_chain([signed(request_, root)], request_, now=NOW)


def test_a_root_key_opens_with_its_passphrase_only() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"canary-passphrase"),
    )
    opened = ceremony.load_root_key(pem, b"canary-passphrase")
    assert opened.private_numbers() == key.private_numbers()
    for wrong in (None, b"wrong"):
        with pytest.raises(InputError) as caught:
            ceremony.load_root_key(pem, wrong)
        assert "canary" not in str(caught.value)


def test_a_request_or_a_root_without_a_name_is_refused(ca_key: rsa.RSAPrivateKey) -> None:
    nameless = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    pem = nameless.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(RefusedError, match="names no subject"):
        ceremony.load_request(pem)
    key = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(InputError, match="is no RFC 4514 name"):
        ceremony.make_root("", key, lifetime=YEAR, now=NOW)
