"""A sound chain verifies; each tampered twin of it is refused with its own reason."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, ObjectIdentifier

from hsm_plugin import trust
from hsm_plugin.errors import NoTrustedRootError, RejectedChainError
from tests.support import pki
from tests.support.pki import MOMENT, Issued

_UNKNOWN = x509.UnrecognizedExtension(ObjectIdentifier("1.3.6.1.4.1.55555.1"), b"\x05\x00")


def verify(*certificates: Issued, roots: list[Issued], after: timedelta = timedelta()) -> list[str]:
    """Return the common names of the verified path."""
    path = trust.verify_chain(
        [entry.certificate for entry in certificates],
        [entry.certificate for entry in roots],
        MOMENT + after,
    )
    return [entry.subject.rfc4514_string().removeprefix("CN=") for entry in path]


@pytest.fixture(scope="module")
def root() -> Issued:
    return pki.root()


@pytest.fixture(scope="module")
def mesh_ca(root: Issued) -> Issued:
    return pki.intermediate(root)


@pytest.fixture(scope="module")
def workload(mesh_ca: Issued) -> Issued:
    return pki.leaf(mesh_ca)


@pytest.fixture(scope="module")
def rsa_root() -> tuple[Issued, rsa.RSAPrivateKey]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return pki.root("RSA Root", key=key), key


# -- sound chains --------------------------------------------------------------------------


def test_a_whole_chain_verifies_to_its_root(
    root: Issued, mesh_ca: Issued, workload: Issued
) -> None:
    assert verify(root, mesh_ca, workload, roots=[root]) == ["workload", "Mesh CA", "Mesh Root"]


def test_a_chain_without_its_root_verifies(root: Issued, mesh_ca: Issued, workload: Issued) -> None:
    assert verify(mesh_ca, workload, roots=[root]) == ["workload", "Mesh CA", "Mesh Root"]


def test_a_chain_in_another_order_verifies(root: Issued, mesh_ca: Issued, workload: Issued) -> None:
    assert verify(mesh_ca, root, workload, roots=[root]) == ["workload", "Mesh CA", "Mesh Root"]


def test_a_lone_target_verifies_when_the_root_signed_it(root: Issued, mesh_ca: Issued) -> None:
    assert verify(mesh_ca, roots=[root]) == ["Mesh CA", "Mesh Root"]


def test_a_lone_root_verifies_against_itself(root: Issued) -> None:
    assert verify(root, roots=[root]) == ["Mesh Root"]


def test_a_chain_that_names_a_certificate_twice_verifies(
    root: Issued, mesh_ca: Issued, workload: Issued
) -> None:
    assert verify(mesh_ca, mesh_ca, workload, roots=[root])[-1] == "Mesh Root"


def test_strangers_in_the_chain_do_not_disturb(
    root: Issued, mesh_ca: Issued, workload: Issued
) -> None:
    stranger = pki.root("Stranger")
    assert verify(stranger, mesh_ca, workload, roots=[stranger, root])[-1] == "Mesh Root"


def test_an_intermediate_that_is_imported_itself_ends_the_path(
    mesh_ca: Issued, workload: Issued
) -> None:
    assert verify(workload, roots=[mesh_ca]) == ["workload", "Mesh CA"]


def test_rsa_chains_verify(rsa_root: tuple[Issued, rsa.RSAPrivateKey]) -> None:
    assert verify(pki.leaf(rsa_root[0]), roots=[rsa_root[0]]) == ["workload", "RSA Root"]


def test_a_path_length_that_just_suffices_verifies() -> None:
    root = pki.root(path_length=1)
    mesh_ca = pki.intermediate(root, path_length=0)
    assert len(verify(mesh_ca, pki.leaf(mesh_ca), roots=[root])) == 3


def test_an_issuer_without_key_usage_may_sign(root: Issued) -> None:
    plain = pki.issue("plain CA", root, is_ca=True, usage=None)
    assert len(verify(plain, pki.leaf(plain), roots=[root])) == 3


def test_critical_extensions_that_are_understood_pass(root: Issued) -> None:
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://mesh/ns/a")])
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    target = pki.issue("workload", root, extensions=[(names, True), (usage, True)])
    assert verify(target, roots=[root]) == ["workload", "Mesh Root"]


def test_an_unknown_extension_that_is_not_critical_passes(root: Issued) -> None:
    target = pki.issue("workload", root, extensions=[(_UNKNOWN, False)])
    assert verify(target, roots=[root]) == ["workload", "Mesh Root"]


def test_a_root_renewed_with_its_key_verifies_whichever_was_imported_first() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    expired = pki.root(
        key=key, valid_from=MOMENT - timedelta(days=9), valid_until=MOMENT - timedelta(days=1)
    )
    renewed = pki.root(key=key)
    target = pki.leaf(renewed)
    assert verify(target, roots=[renewed, expired]) == ["workload", "Mesh Root"]
    assert verify(target, roots=[expired, renewed]) == ["workload", "Mesh Root"]


def test_a_cross_signed_ca_verifies_whichever_twin_comes_first(root: Issued) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    foreign = pki.root("Foreign Root")
    ours, theirs = (
        pki.issue("Mesh CA", issuer, is_ca=True, usage=pki.CA_USAGE, key=key)
        for issuer in (root, foreign)
    )
    target = pki.leaf(ours)
    assert verify(ours, theirs, target, roots=[root])[-1] == "Mesh Root"
    assert verify(theirs, ours, target, roots=[root])[-1] == "Mesh Root"


# -- tampered twins ------------------------------------------------------------------------


def test_no_imported_root_is_a_reason_of_its_own(workload: Issued) -> None:
    with pytest.raises(NoTrustedRootError, match="no root certificate is imported") as caught:
        verify(workload, roots=[])
    assert "import-ca" in caught.value.hint


def test_no_certificate_is_refused(root: Issued) -> None:
    with pytest.raises(RejectedChainError, match="no certificate was given"):
        verify(roots=[root])


def test_seventeen_certificates_are_refused_and_sixteen_are_not(
    root: Issued, mesh_ca: Issued
) -> None:
    assert verify(*[mesh_ca] * 16, roots=[root])
    with pytest.raises(RejectedChainError, match="more than 16"):
        verify(*[mesh_ca] * 17, roots=[root])


def test_a_changed_signature_on_the_target_is_refused(
    root: Issued, mesh_ca: Issued, workload: Issued
) -> None:
    with pytest.raises(RejectedChainError, match='signature on certificate "CN=workload"'):
        verify(mesh_ca, pki.with_broken_signature(workload), roots=[root])


def test_a_changed_signature_on_the_intermediate_is_refused(
    root: Issued, mesh_ca: Issued, workload: Issued
) -> None:
    with pytest.raises(RejectedChainError, match='signature on certificate "CN=Mesh CA"'):
        verify(pki.with_broken_signature(mesh_ca), workload, roots=[root])


def test_another_root_of_the_same_name_is_refused(mesh_ca: Issued, workload: Issued) -> None:
    with pytest.raises(RejectedChainError, match="not made by any issuer of that name"):
        verify(mesh_ca, workload, roots=[pki.root()])


def test_a_chain_that_brings_its_own_root_of_that_name_is_refused(root: Issued) -> None:
    impostor = pki.root()
    with pytest.raises(RejectedChainError, match="Mesh Root"):
        verify(impostor, pki.leaf(impostor), roots=[root])


def test_a_root_with_the_imported_key_but_other_content_is_no_anchor() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    imported, twin = pki.root(key=key), pki.root("Twin", key=key)
    with pytest.raises(RejectedChainError, match="Twin"):
        verify(twin, pki.leaf(twin), roots=[imported])


def test_a_missing_intermediate_is_refused(root: Issued, workload: Issued) -> None:
    with pytest.raises(RejectedChainError, match="neither imported nor in the chain") as caught:
        verify(root, workload, roots=[root])
    assert "whole chain" in caught.value.hint


def test_a_lone_self_signed_target_is_refused(root: Issued) -> None:
    with pytest.raises(RejectedChainError, match="neither imported nor in the chain"):
        verify(pki.root("Other Root"), roots=[root])


def test_two_cas_that_signed_each_other_are_refused_and_not_followed_for_ever(
    root: Issued,
) -> None:
    key_a, key_b = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    a, b = pki.root("A", key=key_a), pki.root("B", key=key_b)
    a_by_b = pki.issue("A", b, is_ca=True, usage=pki.CA_USAGE, key=key_a)
    b_by_a = pki.issue("B", a, is_ca=True, usage=pki.CA_USAGE, key=key_b)
    with pytest.raises(RejectedChainError, match="not made by any issuer"):
        verify(a_by_b, b_by_a, pki.leaf(a_by_b), roots=[root])


def test_a_chain_of_twins_with_one_key_is_refused_in_bounded_time(root: Issued) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    base = pki.root("Loop", key=key)
    twins = [pki.issue("Loop", base, is_ca=True, usage=pki.CA_USAGE, key=key) for _ in range(15)]
    with pytest.raises(RejectedChainError):
        verify(*twins, pki.leaf(base), roots=[root])


def test_an_expired_target_is_refused(root: Issued, mesh_ca: Issued, workload: Issued) -> None:
    end = timedelta(days=1)
    assert verify(mesh_ca, workload, roots=[root], after=end)
    with pytest.raises(RejectedChainError, match='"CN=workload" expired at'):
        verify(mesh_ca, workload, roots=[root], after=end + timedelta(seconds=1))


def test_a_target_of_the_future_is_refused(root: Issued, mesh_ca: Issued, workload: Issued) -> None:
    start = -timedelta(hours=1)
    assert verify(mesh_ca, workload, roots=[root], after=start)
    with pytest.raises(RejectedChainError, match="not valid before") as caught:
        verify(mesh_ca, workload, roots=[root], after=start - timedelta(seconds=1))
    assert "clocks" in caught.value.hint


def _expired(root: Issued) -> Issued:
    return pki.issue(
        "Old CA", root, is_ca=True, usage=pki.CA_USAGE, valid_until=MOMENT - timedelta(seconds=1)
    )


def _future(root: Issued) -> Issued:
    return pki.issue(
        "New CA", root, is_ca=True, usage=pki.CA_USAGE, valid_from=MOMENT + timedelta(seconds=1)
    )


def _no_ca_flag(root: Issued) -> Issued:
    return pki.issue("no CA", root, is_ca=False, usage=pki.CA_USAGE)


def _no_constraints(root: Issued) -> Issued:
    return pki.issue("no constraints", root, is_ca=None, usage=pki.CA_USAGE)


def _no_cert_sign(root: Issued) -> Issued:
    return pki.issue("no certSign", root, is_ca=True, usage=pki.LEAF_USAGE)


def _unknown_critical(root: Issued) -> Issued:
    return pki.issue("unknown", root, is_ca=True, usage=pki.CA_USAGE, extensions=[(_UNKNOWN, True)])


def _name_constraints(root: Issued) -> Issued:
    only = x509.NameConstraints(
        None, [x509.DirectoryName(x509.Name.from_rfc4514_string("CN=workload"))]
    )
    return pki.issue("narrow", root, is_ca=True, usage=pki.CA_USAGE, extensions=[(only, True)])


def _weak_rsa(root: Issued) -> Issued:
    key = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    return pki.issue("weak", root, is_ca=True, usage=pki.CA_USAGE, key=key)


def _weak_curve(root: Issued) -> Issued:
    key = ec.generate_private_key(ec.SECP224R1())
    return pki.issue("weak", root, is_ca=True, usage=pki.CA_USAGE, key=key)


@pytest.mark.parametrize(
    ("faulty", "reason"),
    [
        (_expired, "expired at"),
        (_future, "not valid before"),
        (_no_ca_flag, "is not a CA"),
        (_no_constraints, "is not a CA"),
        (_no_cert_sign, "may not sign certificates"),
        (_unknown_critical, "1.3.6.1.4.1.55555.1"),
        (_name_constraints, "exclude CN=workload"),
        (_weak_rsa, "weak"),
        (_weak_curve, "weak"),
    ],
)
def test_an_intermediate_with_a_fault_is_refused_by_that_fault(
    root: Issued, faulty: Callable[[Issued], Issued], reason: str
) -> None:
    issuer = faulty(root)
    with pytest.raises(RejectedChainError, match=reason):
        verify(root, issuer, pki.leaf(issuer), roots=[root])


def test_a_leaf_does_not_act_as_a_ca(root: Issued, workload: Issued, mesh_ca: Issued) -> None:
    with pytest.raises(RejectedChainError, match='"CN=workload" is not a CA'):
        verify(mesh_ca, workload, pki.leaf(workload, "forged"), roots=[root])


def test_a_target_with_an_unknown_critical_extension_is_refused(root: Issued) -> None:
    target = pki.issue("workload", root, extensions=[(_UNKNOWN, True)])
    with pytest.raises(RejectedChainError, match="critical extensions not understood"):
        verify(target, roots=[root])


def test_a_target_with_a_weak_key_is_refused(root: Issued) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    with pytest.raises(RejectedChainError, match="workload"):
        verify(pki.issue("workload", root, key=key), roots=[root])


def test_an_intermediate_below_path_length_0_is_refused() -> None:
    root = pki.root(path_length=0)
    mesh_ca = pki.intermediate(root)
    assert verify(mesh_ca, roots=[root])
    with pytest.raises(RejectedChainError, match="allows 0 intermediate"):
        verify(mesh_ca, pki.leaf(mesh_ca), roots=[root])


def test_the_path_length_of_an_intermediate_counts_too(root: Issued) -> None:
    first = pki.intermediate(root, "first", path_length=0)
    second = pki.intermediate(first, "second")
    with pytest.raises(RejectedChainError, match='"CN=first" allows 0 intermediate'):
        verify(first, second, pki.leaf(second), roots=[root])


def test_an_sha1_signature_is_refused(rsa_root: tuple[Issued, rsa.RSAPrivateKey]) -> None:
    issuer, key = rsa_root
    target = pki.leaf(issuer)
    assert verify(target, roots=[issuer])
    with pytest.raises(RejectedChainError):
        verify(pki.with_sha1_signature(target, key), roots=[issuer])


# -- roots ---------------------------------------------------------------------------------


def test_a_sound_root_may_be_imported(root: Issued) -> None:
    trust.check_root(root.certificate, MOMENT)


def _sha1_root(_: Issued) -> Issued:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return pki.with_sha1_signature(pki.root(key=key), key)


def _expired_root(_: Issued) -> Issued:
    return pki.root(valid_until=MOMENT - timedelta(seconds=1))


def _future_root(_: Issued) -> Issued:
    return pki.root(valid_from=MOMENT + timedelta(seconds=1))


def _self_issued_by_another_key(root: Issued) -> Issued:
    return pki.issue("Mesh Root", root, is_ca=True, usage=pki.CA_USAGE)


def _weak_root(_: Issued) -> Issued:
    key = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    return pki.root(key=key)


@pytest.mark.parametrize(
    ("faulty", "reason"),
    [
        (_expired_root, "expired at"),
        (_future_root, "not valid before"),
        (_weak_root, "Mesh Root"),
        (_sha1_root, "signed with sha1"),
        (pki.with_broken_signature, "not self-signed"),
        (pki.intermediate, "not self-signed"),
        (_self_issued_by_another_key, "not self-signed"),
        (pki.leaf, "not a CA"),
        (lambda _: pki.issue("plain", usage=pki.CA_USAGE), "not a CA"),
        (lambda _: pki.issue("plain", is_ca=True, usage=pki.LEAF_USAGE), "may not sign"),
    ],
)
def test_a_root_with_a_fault_is_not_imported(
    root: Issued, faulty: Callable[[Issued], Issued], reason: str
) -> None:
    with pytest.raises(RejectedChainError, match=reason):
        trust.check_root(faulty(root).certificate, MOMENT)


# -- reading -------------------------------------------------------------------------------


def test_pem_and_der_of_one_certificate_read_alike(root: Issued) -> None:
    assert trust.load_certificate(root.pem, "it") == trust.load_certificate(root.der, "it")
    assert trust.to_der(root.certificate) == root.der


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda _: b"", "it is empty"),
        (lambda _: b"\0" * ((64 << 10) + 1), "more than 65536"),
        (lambda it: it.pem * 2, "more than one certificate"),
        (lambda it: it.der + b"\0", "not a certificate in PEM or DER"),
        (lambda it: it.der[:-1], "not a certificate in PEM or DER"),
        (lambda it: it.pem.replace(b"MII", b"%%%"), "not a certificate in PEM or DER"),
        (lambda it: it.pem.replace(b"BEGIN CERTIFICATE", b"BEGIN X509"), "not a certificate"),
        (lambda _: pki.request(), "not a certificate in PEM or DER"),
        (lambda _: b"garbage", "not a certificate in PEM or DER"),
    ],
)
def test_what_is_not_one_certificate_is_refused(
    root: Issued, spoil: Callable[[Issued], bytes], reason: str
) -> None:
    with pytest.raises(RejectedChainError, match=reason):
        trust.load_certificate(spoil(root), "it")


def test_a_certificate_with_an_unreadable_name_is_refused(root: Issued) -> None:
    assert trust.load_certificate(root.der, "it") == root.certificate
    with pytest.raises(RejectedChainError, match="it is not a certificate"):
        trust.load_certificate(pki.with_unreadable_name(root, "Mesh Root"), "it")


def test_a_key_of_an_unknown_kind_is_refused(root: Issued) -> None:
    key = ed448.Ed448PrivateKey.generate()
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(root.certificate.subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(MOMENT)
        .not_valid_after(MOMENT + timedelta(hours=1))
    )
    certificate = builder.sign(root.key, hashes.SHA256())
    with pytest.raises(RejectedChainError, match="a certificate without a subject"):
        trust.verify_chain([certificate], [root.certificate], MOMENT)


def test_a_name_cannot_add_lines_or_colours_to_a_message() -> None:
    forged = pki.issue("x\nhint: run this\r\x1b[31m", is_ca=False)
    with pytest.raises(RejectedChainError) as caught:
        trust.check_root(forged.certificate, MOMENT)
    assert str(caught.value).isprintable()


def test_a_long_name_is_shortened_in_a_message() -> None:
    names = x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATIONAL_UNIT_NAME, "u" * 64)] * 40)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(names)
        .issuer_name(names)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(MOMENT)
        .not_valid_after(MOMENT + timedelta(hours=1))
        .sign(key, hashes.SHA256())
    )
    with pytest.raises(RejectedChainError) as caught:
        trust.check_root(certificate, MOMENT)
    assert len(str(caught.value)) < 300
