import pytest
from cryptography import x509

from istiod_ca_bridge.chain import checked_chain
from istiod_ca_bridge.errors import RefusedChainError
from istiod_ca_bridge.name_constraints import IssuedNames
from tests.support import pki
from tests.unit.istiod_ca_bridge.doubles import NOW, ca_certificate, local_signer, pem

KEY = local_signer().public_key
NAMES = IssuedNames(("mesh.example.com",), ("istiod.istio-system.svc", "localhost"))


def uri(text: str) -> x509.GeneralName:
    return x509.UniformResourceIdentifier(text)


def dns(text: str) -> x509.GeneralName:
    return x509.DNSName(text)


def organization(text: str) -> x509.GeneralName:
    return x509.DirectoryName(x509.Name.from_rfc4514_string(f"O={text}"))


def judge(
    permitted: list[x509.GeneralName] | None,
    excluded: list[x509.GeneralName] | None,
    *,
    of_root: bool = False,
) -> None:
    """Judge a chain whose CA certificate, or whose root, has these constraints."""
    extension = (x509.NameConstraints(permitted, excluded), True)
    if of_root:
        root = pki.issue("Root", is_ca=True, usage=pki.CA_USAGE, extensions=(extension,))
        ca = ca_certificate(KEY, root)
    else:
        root = pki.root()
        ca = ca_certificate(KEY, root, extensions=(extension,))
    checked_chain(pem(ca, root.certificate), KEY, NOW, NAMES)


@pytest.mark.parametrize("of_root", [False, True])
@pytest.mark.parametrize(
    ("permitted", "excluded"),
    [
        ([uri("mesh.example.com")], None),
        ([uri("MESH.example.com")], None),
        ([uri(".example.com")], None),
        ([uri("other.test"), uri("mesh.example.com")], None),
        ([dns("svc"), dns("localhost")], None),
        ([dns("")], None),
        (None, [uri("other.test"), uri(".mesh.example.com"), dns("example.com")]),
        (None, [uri("example.com")]),
        ([x509.RFC822Name("example.com")], None),
    ],
)
def test_constraints_that_permit_what_is_issued_are_taken(
    permitted: list[x509.GeneralName] | None,
    excluded: list[x509.GeneralName] | None,
    *,
    of_root: bool,
) -> None:
    judge(permitted, excluded, of_root=of_root)


@pytest.mark.parametrize("of_root", [False, True])
@pytest.mark.parametrize(
    ("permitted", "excluded", "named"),
    [
        ([uri("example.com")], None, "do not permit mesh.example.com"),
        ([uri("esh.example.com")], None, "do not permit mesh.example.com"),
        ([uri(".mesh.example.com")], None, "do not permit mesh.example.com"),
        ([dns("svc")], None, "do not permit localhost"),
        ([dns("vc"), dns("localhost")], None, "do not permit istiod.istio-system.svc"),
        (None, [uri("mesh.example.com")], "exclude mesh.example.com"),
        (None, [uri(".example.com")], "exclude mesh.example.com"),
        (None, [dns("istio-system.svc")], "exclude istiod.istio-system.svc"),
        (None, [dns("")], "exclude"),
    ],
)
def test_constraints_that_forbid_what_is_issued_are_refused_by_name(
    permitted: list[x509.GeneralName] | None,
    excluded: list[x509.GeneralName] | None,
    named: str,
    *,
    of_root: bool,
) -> None:
    with pytest.raises(RefusedChainError, match=named):
        judge(permitted, excluded, of_root=of_root)


def test_a_root_s_constraint_on_subjects_holds_for_the_ca_certificate() -> None:
    judge([organization("cluster.local")], None, of_root=True)
    with pytest.raises(RefusedChainError, match=r"do not permit O=cluster\.local"):
        judge([organization("else")], None, of_root=True)
    with pytest.raises(RefusedChainError, match=r"exclude O=cluster\.local"):
        judge(None, [organization("cluster.local")], of_root=True)


def test_a_certificate_s_constraints_do_not_hold_for_itself() -> None:
    judge([organization("else")], None)


@pytest.mark.parametrize("text", ["CLUSTER.LOCAL", " cluster.local "])
def test_neither_case_nor_spaces_of_a_subject_are_heeded(text: str) -> None:
    limit = x509.DirectoryName(
        x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, text)])
    )
    judge([limit], None, of_root=True)
    with pytest.raises(RefusedChainError, match=r"exclude O=cluster\.local"):
        judge(None, [limit], of_root=True)
