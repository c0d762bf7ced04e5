"""Whether the CA certificates of a path let us issue the names that we issue (RFC 5280, 4.2.1.10).

Only kinds of names that we issue, and the subjects of the CA certificates themselves, are
compared; a constraint on any other kind concerns nobody here.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cryptography import x509

from istiod_ca_bridge.errors import RefusedChainError


@dataclass(frozen=True, slots=True)
class IssuedNames:
    """What leaves of this CA are called."""

    uri_hosts: tuple[str, ...] = ()
    """Trust domains: the hosts of SPIFFE URIs."""

    dns_names: tuple[str, ...] = ()


def check_name_constraints(path: Sequence[x509.Certificate], names: IssuedNames) -> None:
    """Return when each certificate (the CA's first, the root last) permits the names.

    RefusedChainError names the first that does not.
    """
    for below, certificate in enumerate(path):
        try:
            constraints = certificate.extensions.get_extension_for_class(x509.NameConstraints).value
        except x509.ExtensionNotFound:
            continue
        permitted = tuple(constraints.permitted_subtrees or ())
        excluded = tuple(constraints.excluded_subtrees or ())
        for name in _names(path[:below], names):
            _check(certificate, name, permitted, excluded)


def _names(below: Iterable[x509.Certificate], names: IssuedNames) -> Iterable[x509.GeneralName]:
    """Yield all names under a certificate; a URI stands for its host."""
    for host in names.uri_hosts:
        yield x509.UniformResourceIdentifier(host)
    for name in names.dns_names:
        yield x509.DNSName(name)
    for certificate in (it for it in below if it.subject.rdns):
        yield x509.DirectoryName(certificate.subject)


def _check(
    certificate: x509.Certificate,
    name: x509.GeneralName,
    permitted: tuple[x509.GeneralName, ...],
    excluded: tuple[x509.GeneralName, ...],
) -> None:
    same_kind = [entry for entry in permitted if type(entry) is type(name)]
    called = f'"{certificate.subject.rfc4514_string()[:200]}"'
    whole = name.value.rfc4514_string() if isinstance(name, x509.DirectoryName) else name.value
    shown = str(whole)[:200]
    if same_kind and not any(_is_within(name, entry) for entry in same_kind):
        raise RefusedChainError(
            f"the name constraints of {called} do not permit {shown}, which is issued under it",
            hint="sign it with nameConstraints that permit the trust domain and the DNS names",
        )
    if any(_is_within(name, entry) for entry in excluded):
        raise RefusedChainError(
            f"the name constraints of {called} exclude {shown}, which is issued under it",
            hint="sign it without excluding the trust domain and the DNS names",
        )


def _is_within(name: x509.GeneralName, subtree: x509.GeneralName) -> bool:
    match name, subtree:
        case x509.UniformResourceIdentifier(), x509.UniformResourceIdentifier():
            host, limit = name.value.lower(), subtree.value.lower()
            return host.endswith(limit) if limit.startswith(".") else host == limit
        case x509.DNSName(), x509.DNSName():
            host, limit = name.value.lower(), subtree.value.lower()
            return not limit or host == limit or host.endswith(f".{limit.removeprefix('.')}")
        case x509.DirectoryName(), x509.DirectoryName():
            limits = _folded(subtree.value)
            return _folded(name.value)[: len(limits)] == limits
        case _:
            return False


def _folded(name: x509.Name) -> list[frozenset[tuple[x509.ObjectIdentifier, str | bytes]]]:
    """Return the parts for a comparison that heeds neither case nor spaces (RFC 5280, 7.1)."""
    return [frozenset((it.oid, _folded_value(it.value)) for it in rdn) for rdn in name.rdns]


def _folded_value(value: str | bytes) -> str | bytes:
    if isinstance(value, bytes):
        return value
    return " ".join(unicodedata.normalize("NFKC", value).casefold().split())
