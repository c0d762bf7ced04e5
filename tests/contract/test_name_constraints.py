"""The plugin, the bridge and openssl judge names under name constraints as one table says."""

import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hsm_plugin import trust
from hsm_plugin.errors import RejectedChainError
from istiod_ca_bridge.errors import RefusedChainError
from istiod_ca_bridge.name_constraints import IssuedNames, check_name_constraints
from tests.contract.name_constraint_cases import CASES, Case, Verdict
from tests.support import pki

_NOW = datetime.now(UTC).replace(microsecond=0)
_KEY = ec.generate_private_key(ec.SECP256R1())
_ROOT = x509.Name.from_rfc4514_string("CN=Constrained Root")


def root(case: Case, *, is_excluded: bool) -> x509.Certificate:
    """Return a root with the case's constraint."""
    limits = [case.limit]
    constraints = x509.NameConstraints(*((None, limits) if is_excluded else (limits, None)))
    return issued(_ROOT, [(constraints, True)], is_ca=True)


def below(case: Case, *, is_ca: bool) -> x509.Certificate:
    """Return a certificate of the case's name, issued by that root."""
    if isinstance(case.name, x509.DirectoryName):
        return issued(case.name.value, [], is_ca=is_ca)
    names = x509.SubjectAlternativeName([case.name])
    return issued(x509.Name([]), [(names, True)], is_ca=is_ca)


def issued(
    subject: x509.Name, extensions: list[tuple[x509.ExtensionType, bool]], *, is_ca: bool
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(_ROOT)
        .public_key(_KEY.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_NOW - timedelta(hours=1))
        .not_valid_after(_NOW + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension((pki.CA_USAGE if is_ca else pki.LEAF_USAGE).extension(), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(_KEY.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(_KEY.public_key()), critical=False
        )
    )
    for extension, is_critical in extensions:
        builder = builder.add_extension(extension, critical=is_critical)
    return builder.sign(_KEY, hashes.SHA256())


def passes(verdict: Verdict, *, is_excluded: bool) -> bool:
    """Tell whether a name may stand below the constraint."""
    return verdict is (Verdict.OUTSIDE if is_excluded else Verdict.WITHIN)


@pytest.mark.parametrize("is_excluded", [False, True], ids=["permitted", "excluded"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_plugin_judges_as_the_table_says(case: Case, *, is_excluded: bool) -> None:
    anchor = root(case, is_excluded=is_excluded)
    target = below(case, is_ca=False)
    if passes(case.verdict, is_excluded=is_excluded):
        assert trust.verify_chain([target], [anchor], _NOW) == [target, anchor]
        return
    with pytest.raises(RejectedChainError, match="name constraints"):
        trust.verify_chain([target], [anchor], _NOW)


@pytest.mark.parametrize("is_excluded", [False, True], ids=["permitted", "excluded"])
@pytest.mark.parametrize("case", [it for it in CASES if it.bridge], ids=str)
def test_the_bridge_judges_as_the_table_says(case: Case, *, is_excluded: bool) -> None:
    ca, names = issued(x509.Name([]), [], is_ca=True), IssuedNames()
    match case.name:
        case x509.DNSName():
            names = IssuedNames(dns_names=(case.name.value,))
        case x509.UniformResourceIdentifier():
            names = IssuedNames(uri_hosts=(case.name.value.split("/")[2],))
        case _:
            ca = below(case, is_ca=True)
    path = [ca, root(case, is_excluded=is_excluded)]
    if passes(case.verdict, is_excluded=is_excluded):
        check_name_constraints(path, names)
        return
    with pytest.raises(RefusedChainError, match="name constraints"):
        check_name_constraints(path, names)


@pytest.mark.parametrize("is_excluded", [False, True], ids=["permitted", "excluded"])
def test_openssl_judges_as_the_table_says_where_it_does_not_say_why_not(
    tmp_path: Path, *, is_excluded: bool
) -> None:
    differing = {}
    for number, case in enumerate(CASES):
        found = judged_by_openssl(case, tmp_path / str(number), is_excluded=is_excluded)
        if found != passes(case.openssl or case.verdict, is_excluded=is_excluded):
            differing[str(case)] = found
    assert differing == {}


def judged_by_openssl(case: Case, folder: Path, *, is_excluded: bool) -> bool:
    """Tell whether `openssl verify` takes a certificate of that name below that constraint."""
    folder.mkdir()
    files = {"root": root(case, is_excluded=is_excluded), "leaf": below(case, is_ca=False)}
    for name, certificate in files.items():
        (folder / name).write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    command = [
        "openssl",
        "verify",
        "-x509_strict",
        "-CAfile",
        str(folder / "root"),
        str(folder / "leaf"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 or "name constraints" in done.stderr or "subtree" in done.stderr, (
        done.stderr
    )
    return done.returncode == 0
