"""A chain whose names its CAs permit verifies; a twin with another name is refused by that name."""

from ipaddress import ip_address, ip_network

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from hsm_plugin import trust
from hsm_plugin.errors import RejectedChainError
from tests.support import pki
from tests.support.pki import MOMENT, Issued

General = x509.GeneralName
MESH = "spiffe://mesh.example.com/ns/a/sa/b"


def uri(text: str) -> General:
    return x509.UniformResourceIdentifier(text)


def dns(text: str) -> General:
    return x509.DNSName(text)


def subject(text: str) -> General:
    return x509.DirectoryName(x509.Name.from_rfc4514_string(text))


def network(text: str) -> General:
    return x509.IPAddress(ip_network(text))


def address(text: str) -> General:
    return x509.IPAddress(ip_address(text))


def authority(
    name: str,
    issuer: Issued | None = None,
    *,
    permitted: list[General] | None = None,
    excluded: list[General] | None = None,
    is_critical: bool = True,
) -> Issued:
    """Return a CA, with name constraints where any are given."""
    constraints = [x509.NameConstraints(permitted, excluded)] if permitted or excluded else []
    extensions = [(entry, is_critical) for entry in constraints]
    return pki.issue(name, issuer, is_ca=True, usage=pki.CA_USAGE, extensions=extensions)


def workload(issuer: Issued, *names: General) -> Issued:
    extensions = [(x509.SubjectAlternativeName(names), True)] if names else []
    return pki.issue("workload", issuer, extensions=extensions)


def verify(root: Issued, *chain: Issued) -> int:
    """Return the length of the verified path."""
    certificates = [entry.certificate for entry in chain]
    return len(trust.verify_chain(certificates, [root.certificate], MOMENT))


def judge(permitted: list[General] | None, excluded: list[General] | None, *names: General) -> None:
    """Judge a workload of these names below a CA below a constrained root."""
    root = authority("Root", permitted=permitted, excluded=excluded)
    mesh_ca = authority("Mesh CA", root)
    assert verify(root, mesh_ca, workload(mesh_ca, *names)) == 3


@pytest.mark.parametrize(
    ("permitted", "excluded", "name"),
    [
        ([uri("mesh.example.com")], None, uri(MESH)),
        ([uri("MESH.Example.com")], None, uri("SPIFFE://Mesh.example.COM:443/x")),
        ([uri(".example.com")], None, uri(MESH)),
        ([uri("other.test"), uri("mesh.example.com")], None, uri(MESH)),
        (None, [uri("example.com"), uri(".mesh.example.com")], uri(MESH)),
        ([dns("svc"), dns("localhost")], None, dns("istiod.istio-system.svc")),
        ([dns("svc"), dns("localhost")], None, dns("LOCALHOST")),
        ([dns("example.com")], None, dns("*.example.com")),
        ([dns("")], None, dns("anything.test")),
        (None, [dns("b.example.com")], dns("*.a.example.com")),
        (None, [dns("xample.com")], dns("example.com")),
        ([network("10.0.0.0/8")], None, address("10.1.2.3")),
        (None, [network("2001:db8::/32")], address("2001:db9::1")),
        ([subject("CN=MESH  ca"), subject("CN=workload")], None, uri(MESH)),
        ([dns("example.com")], None, uri(MESH)),
        ([x509.RFC822Name("example.com")], None, uri(MESH)),
    ],
)
def test_names_that_every_ca_permits_verify(
    permitted: list[General] | None, excluded: list[General] | None, name: General
) -> None:
    judge(permitted, excluded, name)


@pytest.mark.parametrize(
    ("permitted", "excluded", "name", "reason"),
    [
        ([uri("mesh.example.com")], None, uri("spiffe://evil.test/ns/a"), "not permit spiffe://ev"),
        ([uri("mesh.example.com")], None, uri("spiffe://a.mesh.example.com/x"), "do not permit"),
        ([uri(".mesh.example.com")], None, uri(MESH), "do not permit"),
        ([uri("mesh.example.com")], None, uri("spiffe://evil.test/mesh.example.com"), "not permit"),
        (None, [uri("MESH.example.com")], uri(MESH), "exclude spiffe://mesh"),
        (None, [uri(".example.com")], uri(MESH), "exclude"),
        ([dns("svc")], None, dns("localhost"), "do not permit localhost"),
        ([dns("vc")], None, dns("istiod.svc"), "do not permit"),
        ([dns(".example.com")], None, dns("example.com"), "do not permit"),
        ([dns("a.example.com")], None, dns("*.example.com"), "do not permit"),
        (None, [dns("example.com")], dns("A.EXAMPLE.com"), "exclude"),
        (None, [dns("a.example.com")], dns("*.example.com"), r"exclude \*\.example"),
        (None, [dns("")], dns("example.com"), "exclude"),
        ([network("10.0.0.0/8")], None, address("11.1.2.3"), "do not permit 11"),
        ([network("10.0.0.0/8")], None, address("::1"), "do not permit ::1"),
        (None, [network("10.0.0.0/8")], address("10.1.2.3"), "exclude 10"),
        ([subject("CN=Mesh CA")], None, uri(MESH), "do not permit CN=workload"),
        ([subject("CN=workload")], None, uri(MESH), "do not permit CN=Mesh CA"),
        (None, [subject("CN=WORKLOAD")], uri(MESH), "exclude CN=workload"),
        (None, [subject("O=evil")], subject("OU=x,O=Evil"), "exclude OU=x"),
    ],
)
def test_a_name_that_a_ca_does_not_permit_is_refused_and_named(
    permitted: list[General] | None, excluded: list[General] | None, name: General, reason: str
) -> None:
    with pytest.raises(RejectedChainError, match=reason):
        judge(permitted, excluded, name)


@pytest.mark.parametrize(
    "name",
    [
        uri("spiffe://mesh.example.com@evil.test/x"),
        uri("spiffe://mesh.example.com\\@evil.test/x"),
        uri("spiffe://mesh.example.com./x"),
        uri("spiffe://mesh%2eexample.com/x"),
        uri("spiffe://10.0.0.1/x"),
        uri("spiffe://[::1]/x"),
        uri("spiffe:///x"),
        uri("urn:mesh.example.com"),
        uri("spiffe://mesh.example.com/\n"),
        dns("example.com."),
        dns("a..example.com"),
        dns("a.*.example.com"),
        dns(" example.com"),
        x509.RFC822Name("someone@example.com"),
    ],
)
@pytest.mark.parametrize("is_excluded", [False, True])
def test_a_name_in_doubt_is_refused_where_its_kind_is_constrained_and_only_there(
    name: General, *, is_excluded: bool
) -> None:
    limit: General
    match name:
        case x509.UniformResourceIdentifier():
            limit = uri("mesh.example.com")
        case x509.DNSName():
            limit = dns("example.com")
        case _:
            limit = x509.RFC822Name("example.com")
    judge([subject("CN=Mesh CA"), subject("CN=workload")], None, name)
    with pytest.raises(RejectedChainError, match="cannot be compared"):
        judge(*((None, [limit]) if is_excluded else ([limit], None)), name)


def test_an_address_in_the_subject_counts_as_an_email_address() -> None:
    root = authority("Root", permitted=[x509.RFC822Name("example.com")])
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.EMAIL_ADDRESS, "sömeone")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(root.certificate.subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(MOMENT)
        .not_valid_after(MOMENT)
    )
    target = Issued(builder.sign(root.key, hashes.SHA256()), key)
    with pytest.raises(RejectedChainError, match="emailAddress cannot be compared"):
        verify(root, target)


@pytest.mark.parametrize("is_critical", [False, True])
def test_constraints_of_an_intermediate_hold_below_it_and_not_for_itself(
    *, is_critical: bool
) -> None:
    root = pki.root()
    only = [uri("mesh.example.com"), subject("CN=workload")]
    mesh_ca = authority("Mesh CA", root, permitted=only, is_critical=is_critical)
    assert verify(root, mesh_ca) == 2
    assert verify(root, mesh_ca, workload(mesh_ca, uri(MESH))) == 3
    with pytest.raises(RejectedChainError, match='of certificate "CN=Mesh CA" do not permit'):
        verify(root, mesh_ca, workload(mesh_ca, uri("spiffe://evil.test/x")))


def test_a_ca_cannot_widen_what_the_root_permits() -> None:
    root = authority("Root", permitted=[uri("mesh.example.com")])
    mesh_ca = authority("Mesh CA", root, permitted=[uri("evil.test"), uri("mesh.example.com")])
    assert verify(root, mesh_ca, workload(mesh_ca, uri(MESH)))
    with pytest.raises(RejectedChainError, match='of certificate "CN=Root" do not permit'):
        verify(root, mesh_ca, workload(mesh_ca, uri("spiffe://evil.test/x")))


def test_a_self_issued_ca_between_is_not_compared_but_a_target_is() -> None:
    root = authority("Mesh Root", excluded=[subject("CN=Mesh Root")])
    renewed = authority("Mesh Root", root)
    assert verify(root, renewed, workload(renewed)) == 3
    with pytest.raises(RejectedChainError, match="exclude CN=Mesh Root"):
        verify(root, renewed)


def test_another_path_that_permits_the_name_is_taken() -> None:
    narrow, wide = authority("Narrow", permitted=[uri("evil.test")]), pki.root("Wide")
    key = ec.generate_private_key(ec.SECP256R1())
    twins = [
        pki.issue("Mesh CA", issuer, is_ca=True, usage=pki.CA_USAGE, key=key)
        for issuer in (narrow, wide)
    ]
    roots = [narrow.certificate, wide.certificate]
    target = workload(twins[0], uri(MESH))
    chain = [entry.certificate for entry in (*twins, target)]
    assert trust.verify_chain(chain, roots, MOMENT)[-1] == wide.certificate


def test_names_and_constraints_beyond_count_are_refused() -> None:
    root = authority("Root", permitted=[dns(f"{number}.test") for number in range(400)])
    few, many = (workload(root, *[dns("0.test")] * count) for count in (200, 300))
    assert verify(root, few) == 2
    with pytest.raises(RejectedChainError, match="too many names"):
        verify(root, many)


def test_a_hostile_name_adds_no_lines_to_a_message() -> None:
    with pytest.raises(RejectedChainError) as caught:
        judge([dns("example.com")], None, dns("a\nhint: run this\x1b[31m" + "b" * 900))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400
