from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, settings
from hypothesis import strategies as st

from istiod_ca_bridge.chain import checked_chain, pem_of
from istiod_ca_bridge.errors import RefusedChainError
from tests.support import pki
from tests.unit.istiod_ca_bridge.doubles import (
    NOW,
    ca_certificate,
    certificate_of_unknown_version,
    local_signer,
    pem,
)

ROOT = pki.root()
KEY = local_signer().public_key
CA = ca_certificate(KEY, ROOT)
GOOD = pem(CA, ROOT.certificate)


def refusal(chain: bytes) -> str:
    with pytest.raises(RefusedChainError) as caught:
        checked_chain(chain, KEY, NOW)
    return str(caught.value)


def test_a_chain_of_ca_and_root_is_taken() -> None:
    chain = checked_chain(GOOD, KEY, NOW)

    assert chain.ca == CA
    assert chain.intermediates == (CA,)
    assert chain.roots == (ROOT.certificate,)
    assert pem_of(*chain.intermediates, *chain.roots).encode() == GOOD


def test_a_longer_chain_and_a_second_root_are_taken() -> None:
    middle = pki.intermediate(ROOT, "Middle", path_length=1)
    ours = ca_certificate(KEY, middle)
    second = pki.root("Next Root")

    chain = checked_chain(
        pem(ours, middle.certificate, ROOT.certificate, second.certificate), KEY, NOW
    )

    assert chain.intermediates == (ours, middle.certificate)
    assert chain.roots == (ROOT.certificate, second.certificate)


def test_the_path_ends_with_its_first_certificate_that_does() -> None:
    assert checked_chain(GOOD, KEY, NOW).not_after == ROOT.certificate.not_valid_after_utc


def test_the_certificate_of_another_key_is_refused() -> None:
    other = ca_certificate(local_signer().public_key, ROOT)

    assert "not of this CA's key" in refusal(pem(other, ROOT.certificate))


def test_root_first_is_refused_with_the_way_out() -> None:
    with pytest.raises(RefusedChainError) as caught:
        checked_chain(pem(ROOT.certificate, CA), KEY, NOW)

    assert caught.value.hint == "put the CA's own certificate first"


def test_a_chain_without_a_root_is_refused() -> None:
    assert "does not end at a root" in refusal(pem(CA))


def test_a_signature_with_one_bit_changed_is_refused() -> None:
    broken = pki.with_broken_signature(pki.Issued(CA, ROOT.key)).certificate

    assert "was not made by" in refusal(pem(broken, ROOT.certificate))


def test_a_root_of_the_same_name_and_another_key_is_refused() -> None:
    assert "was not made by" in refusal(pem(CA, pki.root().certificate))


def test_a_root_whose_own_signature_is_broken_is_refused() -> None:
    broken = pki.with_broken_signature(ROOT).certificate

    assert "was not made by" in refusal(pem(CA, broken))


def test_a_chain_out_of_order_is_refused() -> None:
    middle = pki.intermediate(ROOT, "Middle", path_length=1)
    ours = ca_certificate(KEY, middle)

    assert "an intermediate follows a root" in refusal(
        pem(ours, ROOT.certificate, middle.certificate)
    )
    assert "is not its issuer" in refusal(pem(ours, ROOT.certificate))


@pytest.mark.parametrize(
    ("not_before", "not_after", "reason"),
    [
        (NOW + timedelta(seconds=1), NOW + timedelta(days=1), "not valid before"),
        (NOW - timedelta(days=1), NOW, "expired"),
    ],
)
def test_a_ca_certificate_outside_its_time_is_refused(
    not_before: object, not_after: object, reason: str
) -> None:
    ours = ca_certificate(KEY, ROOT, not_before=not_before, not_after=not_after)  # type: ignore[arg-type]

    assert reason in refusal(pem(ours, ROOT.certificate))


def test_an_expired_root_is_refused() -> None:
    old = pki.root(valid_until=NOW - timedelta(minutes=1))
    ours = ca_certificate(KEY, old)

    assert "expired" in refusal(pem(ours, old.certificate))


@pytest.mark.parametrize("basic", [None, x509.BasicConstraints(ca=False, path_length=None)])
def test_a_certificate_that_is_no_ca_is_refused(basic: x509.BasicConstraints | None) -> None:
    assert "is not a CA" in refusal(pem(ca_certificate(KEY, ROOT, basic=basic), ROOT.certificate))


def test_a_ca_that_may_not_sign_certificates_is_refused() -> None:
    ours = ca_certificate(KEY, ROOT, usage=pki.LEAF_USAGE)

    assert "may not sign certificates" in refusal(pem(ours, ROOT.certificate))


def test_a_root_whose_path_length_leaves_no_room_for_leaves_is_refused() -> None:
    narrow = pki.root(path_length=0)
    ours = ca_certificate(KEY, narrow)

    assert "allows 0 CA certificate(s) below it" in refusal(pem(ours, narrow.certificate))


def test_a_ca_whose_leaves_could_not_be_servers_is_refused() -> None:
    only_client = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
    both = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH])

    narrow = ca_certificate(KEY, ROOT, extensions=((only_client, False),))
    assert "restricts its extended key usage" in refusal(pem(narrow, ROOT.certificate))
    wide = ca_certificate(KEY, ROOT, extensions=((both, False),))
    assert checked_chain(pem(wide, ROOT.certificate), KEY, NOW).ca == wide


def test_a_critical_extension_that_is_not_understood_is_refused() -> None:
    ours = ca_certificate(KEY, ROOT, extensions=((x509.InhibitAnyPolicy(0), True),))

    assert "2.5.29.54" in refusal(pem(ours, ROOT.certificate))


def test_a_weak_root_is_refused() -> None:
    weak = pki.root(key=rsa.generate_private_key(65537, 1024))
    ours = ca_certificate(KEY, weak)

    assert "weak" in refusal(pem(ours, weak.certificate))


def test_a_sha1_signature_is_refused() -> None:
    key = rsa.generate_private_key(65537, 2048)
    root = pki.root(key=key)
    ours = pki.with_sha1_signature(pki.Issued(ca_certificate(KEY, root), key), key)

    assert "sha1" in refusal(pem(ours.certificate, root.certificate))


def test_a_self_signed_certificate_of_our_key_is_refused() -> None:
    signer = local_signer()
    ours = pki.root(key=signer.key)

    with pytest.raises(RefusedChainError, match="self-signed"):
        checked_chain(ours.pem, signer.public_key, NOW)


@pytest.mark.parametrize(
    "chain",
    [
        b"",
        b"hello",
        GOOD * 9,
        b"x" * (300 << 10),
        GOOD + b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        GOOD.replace(b"M", b"N"),
    ],
)
def test_what_is_no_chain_is_refused(chain: bytes) -> None:
    refusal(chain)


def test_a_certificate_of_an_unknown_version_is_refused() -> None:
    assert "malformed" in refusal(certificate_of_unknown_version(GOOD))


@settings(deadline=None)
@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255))
def test_any_byte_changed_gives_the_same_chain_or_a_refusal(at: int, byte: int) -> None:
    changed = bytearray(GOOD)
    changed[at] = byte
    try:
        chain = checked_chain(bytes(changed), KEY, NOW)
    except RefusedChainError:
        return
    assert chain.ca == CA
