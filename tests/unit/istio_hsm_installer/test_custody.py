from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from istio_hsm_installer import custody
from istio_hsm_installer.certificates import key_sha256
from istio_hsm_installer.custody import CaKey, KeyPlace
from tests.support import pki

NOW = pki.MOMENT
ROOT = pki.root()
CA = pki.intermediate(ROOT)
CHAIN = [CA.certificate, ROOT.certificate]
KEY = CaKey(KeyPlace.RESIDENT, "kek", "ca-1")
LISTED = {
    "key_id": "ca-1",
    "algorithm": "ECDSA_P256",
    "public_key_sha256": key_sha256(CA.certificate.public_key()),
}


def names(*names: str) -> tuple[x509.ExtensionType, bool]:
    return x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), False


def test_the_secret_says_where_the_key_is() -> None:
    resident = custody.ca_key({"kek-id": b"kek", "key-id": b"ca-1", "key-algorithm": b"x"})
    assert resident == KEY
    assert custody.ca_key({"kek-id": b"k", "encrypted-skey": b"x"}).place is KeyPlace.SEALED
    assert custody.ca_key({}).place is KeyPlace.NONE


def test_the_chain_s_key_that_the_plugin_lists_is_fine() -> None:
    assert custody.resident(KEY, [LISTED], CHAIN).is_fine


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        ([], "lists no key ca-1"),
        ([{"key_id": "ca-1", "fault": "it can leave the token"}], "can leave the token"),
        ([{**LISTED, "public_key_sha256": "00"}], "not for the key"),
    ],
)
def test_another_key_or_one_that_can_leave_the_token_is_not(
    listed: list[dict[str, object]], said: str
) -> None:
    point = custody.resident(KEY, listed, CHAIN)
    assert not point.is_fine
    assert said in point.said
    assert point.hint


def test_a_sealed_key_needs_the_configured_kek_in_the_hsm() -> None:
    sealed = CaKey(KeyPlace.SEALED, "kek")
    assert custody.sealed(sealed, "kek", has_kek=True).is_fine
    assert not custody.sealed(sealed, "kek", has_kek=False).is_fine
    assert not custody.sealed(sealed, "other", has_kek=True).is_fine


def test_a_leaf_of_the_hsm_s_certificate_is_fine_until_it_expires() -> None:
    leaf = pki.issue("leaf", CA).certificate
    assert custody.served("a:1", leaf, "", CHAIN, NOW)[0].is_fine
    [late] = custody.served("a:1", leaf, "", CHAIN, NOW + timedelta(days=2))
    assert not late.is_fine
    assert "expired" in late.said


def test_a_leaf_of_a_namesake_is_not() -> None:
    leaf = pki.issue("leaf", pki.intermediate(ROOT)).certificate
    [point] = custody.served("a:1", leaf, "", CHAIN, NOW)
    assert not point.is_fine
    assert "not the HSM's" in point.said


def test_the_webhook_s_bundle_must_have_the_root() -> None:
    assert custody.bundle([ROOT.pem + pki.root("Old").pem], CHAIN).is_fine
    assert not custody.bundle([ROOT.pem, pki.root().pem], CHAIN).is_fine
    assert not custody.bundle([b"garbage"], CHAIN).is_fine
    assert not custody.bundle([], CHAIN).is_fine


@pytest.mark.parametrize(
    ("issuer", "name", "said"),
    [
        (CA, "istiod.other.svc", "is not for istiod.x.svc"),
        (ROOT, "istiod.x.svc", "not signed by the HSM's certificate"),
    ],
)
def test_istiod_s_certificate_is_the_bridge_s_and_has_its_name(
    issuer: pki.Issued, name: str, said: str
) -> None:
    good = pki.issue("t", CA, extensions=[names("istiod.x.svc")])
    assert custody.istiod_tls({"tls.crt": good.pem}, CHAIN, "istiod.x.svc", NOW).is_fine
    wrong = pki.issue("t", issuer, extensions=[names(name)])
    point = custody.istiod_tls({"tls.crt": wrong.pem}, CHAIN, "istiod.x.svc", NOW)
    assert not point.is_fine
    assert said in point.said


def test_a_secret_without_a_certificate_is_told() -> None:
    assert not custody.istiod_tls({}, CHAIN, "istiod.x.svc", NOW).is_fine
    assert not custody.istiod_tls({"tls.crt": CA.pem}, CHAIN, "istiod.x.svc", NOW).is_fine


@pytest.mark.parametrize(
    "name", ["certificate-of-version-9.pem", "certificate-with-a-duplicated-extension.pem"]
)
def test_a_serving_certificate_that_is_malformed_is_a_finding(name: str) -> None:
    pem = (Path(__file__).parents[2] / "corpus" / name).read_bytes()
    point = custody.istiod_tls({"tls.crt": pem}, CHAIN, "istiod.istio-system.svc", NOW)
    assert not point.is_fine
    assert "holds no certificate" in point.said
