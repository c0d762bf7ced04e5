"""Which list is whose, as proxies judge it."""

from cryptography import x509

from istiod_ca_bridge.chain import checked_chain
from istiod_ca_bridge.crl_bundle import cas_above, is_list_of, path_of
from tests.support import pki
from tests.unit.istiod_ca_bridge.doubles import NOW, ca_certificate, local_signer, pem

ROOT = pki.root()


def test_a_ca_that_may_not_sign_lists_or_has_another_key_identifier_has_no_list() -> None:
    silent = pki.issue("Silent", is_ca=True, usage=pki.Usage(sign_data=True))
    assert not is_list_of(pki.crl(silent), silent.certificate, NOW)

    key = local_signer().key
    own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    ca = pki.issue("Named", is_ca=True, usage=pki.CA_USAGE, key=key, extensions=[(own, False)])
    for identifier, right in ((own.digest, True), (b"another", False)):
        named = x509.AuthorityKeyIdentifier(identifier, None, None)
        crl = pki.crl(ca, extensions=[(named, False)])
        assert is_list_of(crl, ca.certificate, NOW) is right


def test_the_path_above_a_leaf_ends_at_the_root_that_signed_it() -> None:
    signer = local_signer()
    chain = pem(ca_certificate(signer.public_key, ROOT), ROOT.certificate)
    other, path = pki.root("Other"), path_of(checked_chain(chain, signer.public_key, NOW))
    twin = pki.root()  # of the same name

    assert cas_above([path[0], twin.certificate, other.certificate, ROOT.certificate]) == path
    assert cas_above([path[0], twin.certificate]) == path[:1]
