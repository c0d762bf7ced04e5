"""The offline root's revocation list: whose it is, what is in it, and what is refused."""

from datetime import timedelta

import pytest
from cryptography import x509

from istio_hsm_installer.ceremony import RootKey
from istio_hsm_installer.errors import InputError, RefusedError
from istio_hsm_installer.root_crl import make_crl, serial_of
from tests.support import pki

NOW = pki.MOMENT
YEAR = timedelta(days=365)
ROOT = pki.root()


def crl_of(
    root: pki.Issued, *serials: int, key: RootKey | None = None
) -> x509.CertificateRevocationList:
    return make_crl(root.certificate, key or root.key, serials, lifetime=YEAR, now=NOW)


def test_a_list_is_the_root_s_with_the_serials_and_valid_for_those_whose_clock_is_late() -> None:
    crl = crl_of(ROOT, 7, 0x5FA3, 7)

    assert crl.is_signature_valid(ROOT.key.public_key())
    assert crl.issuer == ROOT.certificate.subject
    assert sorted(it.serial_number for it in crl) == [7, 0x5FA3]
    assert crl.last_update_utc < NOW
    assert crl.next_update_utc == NOW + YEAR
    key = crl.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    own = x509.AuthorityKeyIdentifier.from_issuer_public_key(ROOT.key.public_key())
    assert key.key_identifier == own.key_identifier


def test_a_list_without_a_serial_has_no_entry_and_a_later_one_a_higher_number() -> None:
    first = crl_of(ROOT)
    later = make_crl(ROOT.certificate, ROOT.key, [], lifetime=YEAR, now=NOW + YEAR)

    assert len(first) == 0
    numbers = [
        it.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        for it in (first, later)
    ]
    assert numbers == sorted(set(numbers))


def test_another_key_and_a_root_that_may_not_sign_lists_are_refused() -> None:
    with pytest.raises(InputError, match="does not belong"):
        crl_of(ROOT, key=pki.root().key)
    silent = pki.issue("Silent", is_ca=True, usage=pki.Usage(sign_data=True))
    with pytest.raises(RefusedError, match="key usage"):
        crl_of(silent)


def test_serials_are_read_as_openssl_writes_them() -> None:
    assert serial_of("5F:A3") == serial_of("5fa3") == 0x5FA3
    for wrong in ("", "0", "-1", "xyz", "1" * 41):
        with pytest.raises(InputError, match="no serial"):
            serial_of(wrong)
