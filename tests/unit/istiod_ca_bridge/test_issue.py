import dataclasses
import hashlib
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from istiod_ca_bridge import der
from istiod_ca_bridge.errors import WrongProductError
from istiod_ca_bridge.issue import Issuer, issue, issuer
from istiod_ca_bridge.policy import Grant
from istiod_ca_bridge.signer import KeyAlgorithm, PublicKey, key_der
from tests.support import pki
from tests.unit.istiod_ca_bridge.doubles import NOW, LocalSigner, ca_certificate, local_signer

WORKLOAD = ec.generate_private_key(ec.SECP256R1()).public_key()
GRANT = Grant(
    public_key=WORKLOAD,
    serial=0x1234567890ABCDEF1234567890ABCDEF,
    not_before=NOW - timedelta(minutes=2),
    not_after=NOW + timedelta(hours=1),
    uris=("spiffe://cluster.local/ns/shop/sa/cart",),
)


def make_issuer(signer: LocalSigner | None = None) -> Issuer:
    signer = signer or local_signer()
    return issuer(ca_certificate(signer.public_key, pki.root()), signer)


@pytest.mark.parametrize("algorithm", list(KeyAlgorithm))
async def test_a_leaf_has_every_field_that_istiod_gives_it(algorithm: KeyAlgorithm) -> None:
    by = make_issuer(local_signer(algorithm))

    leaf = await issue(by, GRANT)

    leaf.verify_directly_issued_by(by.certificate)
    assert leaf.version is x509.Version.v3
    assert leaf.serial_number == GRANT.serial
    assert leaf.subject == x509.Name([])
    assert leaf.issuer == by.certificate.subject
    assert (leaf.not_valid_before_utc, leaf.not_valid_after_utc) == (
        GRANT.not_before,
        GRANT.not_after,
    )
    assert leaf.public_key() == WORKLOAD
    assert [(entry.oid, entry.critical) for entry in leaf.extensions] == [
        (ExtensionOID.KEY_USAGE, True),
        (ExtensionOID.EXTENDED_KEY_USAGE, False),
        (ExtensionOID.BASIC_CONSTRAINTS, True),
        (ExtensionOID.AUTHORITY_KEY_IDENTIFIER, False),
        (ExtensionOID.SUBJECT_KEY_IDENTIFIER, False),
        (ExtensionOID.SUBJECT_ALTERNATIVE_NAME, True),
    ]
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.digital_signature
    assert usage.key_encipherment
    assert not any((usage.key_cert_sign, usage.crl_sign, usage.key_agreement))
    assert list(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    ]
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.UniformResourceIdentifier(GRANT.uris[0])]


async def test_the_authority_key_is_the_subject_key_of_the_ca_certificate() -> None:
    signer = local_signer()
    chosen = x509.SubjectKeyIdentifier(b"\x01\x02\x03\x04")
    by = issuer(
        ca_certificate(signer.public_key, pki.root(), extensions=((chosen, False),)), signer
    )

    leaf = await issue(by, GRANT)

    found = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    assert found.key_identifier == chosen.digest


async def test_a_validity_past_2049_is_written_as_generalized_time() -> None:
    signer = local_signer()
    far = NOW.replace(year=2060)
    by = issuer(ca_certificate(signer.public_key, pki.root(), not_after=far), signer)

    leaf = await issue(by, dataclasses.replace(GRANT, not_after=far))

    assert leaf.not_valid_after_utc == far


class LyingSigner:
    """Signs something else than it is given, or by another key."""

    def __init__(self, public_key: PublicKey, other: LocalSigner, change: bytes = b"") -> None:
        self._public_key = public_key
        self._other = other
        self._change = change

    @property
    def public_key(self) -> PublicKey:
        return self._public_key

    async def sign(self, message: bytes) -> bytes:
        return await self._other.sign(message + self._change)


async def test_a_signature_by_another_key_does_not_leave() -> None:
    own = local_signer()
    by = make_issuer(own)
    lying = dataclasses.replace(by, signer=LyingSigner(own.public_key, local_signer()))

    with pytest.raises(WrongProductError, match="not the CA's"):
        await issue(lying, GRANT)


async def test_a_signature_on_something_else_does_not_leave() -> None:
    own = local_signer()
    by = make_issuer(own)
    lying = dataclasses.replace(by, signer=LyingSigner(own.public_key, own, b"more"))

    with pytest.raises(WrongProductError):
        await issue(lying, GRANT)


async def test_a_leaf_that_would_outlive_its_ca_does_not_leave() -> None:
    by = make_issuer()
    outlives = dataclasses.replace(GRANT, not_after=NOW + timedelta(days=31))

    with pytest.raises(WrongProductError, match="CA's not after"):
        await issue(by, outlives)


async def test_an_assembly_that_loses_an_extension_is_noticed() -> None:
    by = make_issuer()
    other = x509.Extension(ExtensionOID.OCSP_NO_CHECK, critical=False, value=x509.OCSPNoCheck())
    wrong = dataclasses.replace(by, authority_key_der=der.extension(other))

    with pytest.raises(WrongProductError, match="extensions"):
        await issue(wrong, GRANT)


@pytest.mark.parametrize("wrong", ["spiffe://cluster.local/ns/shop/sa/other", ""])
async def test_an_assembly_with_another_name_is_noticed(
    wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(der, "names", lambda *_: der.sequence(der.tlv(0x86, wrong.encode())))

    with pytest.raises(WrongProductError, match="extensions"):
        await issue(make_issuer(), GRANT)


async def test_an_assembly_with_another_key_s_identifier_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(der, "key_bits", lambda _: b"other bits")

    with pytest.raises(WrongProductError, match="extensions"):
        await issue(make_issuer(), GRANT)


async def test_an_assembly_with_another_key_is_noticed() -> None:
    wrong = dataclasses.replace(GRANT)
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    object.__setattr__(wrong, "public_key", other)

    with pytest.raises(WrongProductError, match="extensions"):
        await issue(make_issuer(), wrong)


async def test_an_issuer_with_another_algorithm_than_its_key_s_is_noticed() -> None:
    by = make_issuer()
    wrong = dataclasses.replace(
        by,
        algorithm_identifier=make_issuer(local_signer(KeyAlgorithm.RSA_2048)).algorithm_identifier,
    )

    with pytest.raises(WrongProductError):
        await issue(wrong, GRANT)


async def test_another_algorithm_after_the_signed_part_than_in_it_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    by, signed = make_issuer(), der.signed
    sha384 = bytes.fromhex("300a06082a8648ce3d040303")
    monkeypatch.setattr(der, "signed", lambda tbs, _, signature: signed(tbs, sha384, signature))

    with pytest.raises(WrongProductError, match="algorithm"):
        await issue(by, GRANT)


async def test_another_issuer_s_name_is_noticed() -> None:
    name = x509.Name.from_rfc4514_string("O=another").public_bytes()

    with pytest.raises(WrongProductError, match="issuer"):
        await issue(dataclasses.replace(make_issuer(), name=name), GRANT)


def test_a_signer_of_another_key_than_the_certificate_s_issues_nothing() -> None:
    with pytest.raises(WrongProductError, match="not the key of the CA certificate"):
        issuer(ca_certificate(local_signer().public_key, pki.root()), local_signer())


@pytest.mark.parametrize("algorithm", list(KeyAlgorithm))
def test_the_bits_of_a_key_make_the_identifier_that_others_make(algorithm: KeyAlgorithm) -> None:
    key = local_signer(algorithm).public_key
    expected = x509.SubjectKeyIdentifier.from_public_key(key).digest

    assert hashlib.sha1(der.key_bits(key_der(key)), usedforsecurity=False).digest() == expected


def test_der_is_what_openssl_reads() -> None:
    for number in (0, 1, 127, 128, 255, 256, 1 << 126):
        assert int.from_bytes(der.unsigned(number)[2:], "big") == number
        assert not der.unsigned(number)[2] & 0x80
    assert der.tlv(4, bytes(300))[:4] == b"\x04\x82\x01\x2c"
    assert der.object_identifier("1.3.6.1.4.1.311.1") == bytes.fromhex("06082b06010401823701")


def test_an_issuer_shows_no_signer() -> None:
    assert "LocalSigner" not in repr(make_issuer())
