"""Whether each CA of a path may issue the names that stand below it (RFC 5280, 4.2.1.10).

Compared are URI hosts, DNS names, IP addresses and directory names, the subjects among them. A
constraint on another kind of name refuses every certificate below that has such a name, and so
does a name whose host cannot be read for certain. The root's constraints count like any other's.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Network, IPv6Network

from cryptography import x509
from cryptography.x509.oid import NameOID

from hsm_plugin.certificate_name import name_of, printable
from hsm_plugin.errors import RejectedChainError

_MAX_COMPARISONS = 100_000
_LABELS = r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*"
_HOST = re.compile(_LABELS, re.ASCII)
_URI = re.compile(rf"[a-z][a-z0-9+.-]*://({_LABELS})(?::[0-9]*)?(?:[/?#][!-~]*)?", re.ASCII)
_IPV4_LIKE = re.compile(r"[0-9.]+", re.ASCII)
_EMAIL_IN_SUBJECT = x509.RFC822Name("emailAddress")
_COMPARED = (x509.UniformResourceIdentifier, x509.DNSName, x509.IPAddress, x509.DirectoryName)


def check_name_constraints(path: Sequence[x509.Certificate]) -> None:
    """Return when every name is permitted; RejectedChainError names the first that is not.

    `path`: the target first, the root last; the extensions of each can be read.
    """
    left = _MAX_COMPARISONS
    for place, issuer in enumerate(path):
        try:
            constraints = issuer.extensions.get_extension_for_class(x509.NameConstraints).value
        except x509.ExtensionNotFound:
            continue
        permitted = constraints.permitted_subtrees or ()
        excluded = constraints.excluded_subtrees or ()
        for below, certificate in enumerate(path[:place]):
            if below and certificate.issuer == certificate.subject:
                continue  # self-issued, and not the target: RFC 5280, 6.1.3 (b)
            for name in _names(certificate):
                left -= len(permitted) + len(excluded)
                if left < 0:
                    raise RejectedChainError("the chain has too many names and name constraints")
                _check(issuer, name, permitted, excluded)


def _names(certificate: x509.Certificate) -> Iterator[x509.GeneralName]:
    if certificate.subject.rdns:
        yield x509.DirectoryName(certificate.subject)
    if certificate.subject.get_attributes_for_oid(NameOID.EMAIL_ADDRESS):
        yield _EMAIL_IN_SUBJECT
    try:
        kind = x509.SubjectAlternativeName
        yield from certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return


def _check(
    issuer: x509.Certificate,
    name: x509.GeneralName,
    permitted: Sequence[x509.GeneralName],
    excluded: Sequence[x509.GeneralName],
) -> None:
    """Return when the issuer's constraints on this kind of name, if any, permit it."""
    permitted = [entry for entry in permitted if type(entry) is type(name)]
    excluded = [entry for entry in excluded if type(entry) is type(name)]
    if not permitted and not excluded:
        return
    if not isinstance(name, _COMPARED) or not _is_readable(name):
        raise RejectedChainError(
            f"{_shown(name)} cannot be compared with the name constraints of {name_of(issuer)}",
            hint="leave out the name, or the constraint on its kind",
        )
    if permitted and not any(_is_within(name, entry) for entry in permitted):
        raise RejectedChainError(
            f"the name constraints of {name_of(issuer)} do not permit {_shown(name)}",
            hint="have the CA signed with nameConstraints that permit the names below it",
        )
    if any(_is_within(name, entry) or _covers(name, entry) for entry in excluded):
        raise RejectedChainError(
            f"the name constraints of {name_of(issuer)} exclude {_shown(name)}",
            hint="have the CA signed without excluding the names below it",
        )


def _is_readable(name: x509.GeneralName) -> bool:
    match name:
        case x509.UniformResourceIdentifier():
            return bool(_host(name))
        case x509.DNSName():
            return bool(_HOST.fullmatch(name.value.lower().removeprefix("*.")))
        case _:
            return True


def _is_within(name: x509.GeneralName, subtree: x509.GeneralName) -> bool:
    match name, subtree:
        case x509.UniformResourceIdentifier(), x509.UniformResourceIdentifier():
            host, limit = _host(name), subtree.value.lower()
            return host.endswith(limit) if limit.startswith(".") else host == limit
        case x509.DNSName(), x509.DNSName():
            host, limit = name.value.lower(), subtree.value.lower()
            suffix = limit if limit.startswith(".") else f".{limit}"
            return not limit or host == limit or host.endswith(suffix)
        case x509.IPAddress(), x509.IPAddress():
            network = subtree.value
            if not isinstance(network, IPv4Network | IPv6Network):
                return False
            return name.value in network
        case x509.DirectoryName(), x509.DirectoryName():
            limits = _folded(subtree.value)
            return _folded(name.value)[: len(limits)] == limits
        case _:
            return False


def _covers(name: x509.GeneralName, subtree: x509.GeneralName) -> bool:
    """Return true for a wildcard that a DNS name of the subtree may match."""
    if not isinstance(name, x509.DNSName) or not isinstance(subtree, x509.DNSName):
        return False
    host = name.value.lower()
    return host.startswith("*.") and f".{subtree.value.lower()}".endswith(host[1:])


def _host(uri: x509.UniformResourceIdentifier) -> str:
    """Return the host's name in lower case; empty for an address, or where it is in doubt."""
    whole = _URI.fullmatch(uri.value.lower())
    return "" if whole is None or _IPV4_LIKE.fullmatch(whole[1]) else whole[1]


def _folded(name: x509.Name) -> list[frozenset[tuple[x509.ObjectIdentifier, str | bytes]]]:
    """Return the RDNs for a comparison that heeds neither case nor spaces (RFC 5280, 7.1)."""
    return [
        frozenset((attribute.oid, _folded_value(attribute.value)) for attribute in rdn)
        for rdn in name.rdns
    ]


def _folded_value(value: str | bytes) -> str | bytes:
    if isinstance(value, bytes):
        return value
    return " ".join(unicodedata.normalize("NFKC", value).casefold().split())


def _shown(name: x509.GeneralName) -> str:
    if isinstance(name, x509.DirectoryName):
        return printable(name.value.rfc4514_string())
    return printable(str(name.value))
