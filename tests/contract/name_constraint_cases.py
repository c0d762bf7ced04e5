"""RFC 5280, section 4.2.1.10, as a table: a constraint, a name below it, and whether it is within.

The plugin and the bridge have a reader each, since the packages never import each other; both are
held to this table, and so is openssl.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from ipaddress import ip_address, ip_network

from cryptography import x509
from cryptography.x509.oid import NameOID


class Verdict(Enum):
    """How a name lies to a subtree."""

    WITHIN = "within"
    OUTSIDE = "outside"
    DOUBT = "doubt"
    """It cannot be compared for certain, so neither side of a constraint lets it pass."""


IN, OUT, DOUBT = Verdict.WITHIN, Verdict.OUTSIDE, Verdict.DOUBT


@dataclass(frozen=True, slots=True)
class Case:
    """One line of the table."""

    limit: x509.GeneralName
    name: x509.GeneralName
    verdict: Verdict
    openssl: Verdict | None = None
    """Where it judges otherwise, and why is said beside the case."""

    bridge: bool = True
    """False for a name that the bridge never issues."""

    def __str__(self) -> str:
        limit, name = (getattr(it.value, "rdns", it.value) for it in (self.limit, self.name))
        return f"{type(self.name).__name__}: {name} below {limit}"


def _dns(limit: str, name: str, verdict: Verdict, **other: object) -> Case:
    return Case(x509.DNSName(limit), x509.DNSName(name), verdict, **other)  # type: ignore[arg-type]


def _uri(limit: str, name: str, verdict: Verdict, **other: object) -> Case:
    kind = x509.UniformResourceIdentifier
    return Case(kind(limit), kind(name), verdict, **other)  # type: ignore[arg-type]


def _host(limit: str, host: str, verdict: Verdict) -> Case:
    return _uri(limit, f"spiffe://{host}/ns/a/sa/b", verdict)


def _mail(limit: str, name: str, openssl: Verdict) -> Case:
    kind = x509.RFC822Name
    return Case(kind(limit), kind(name), DOUBT, openssl, bridge=False)


def _address(limit: str, name: str, verdict: Verdict) -> Case:
    return Case(
        x509.IPAddress(ip_network(limit)), x509.IPAddress(ip_address(name)), verdict, bridge=False
    )


def _subject(
    limit: Mapping[str, str],
    name: Mapping[str, str],
    verdict: Verdict,
    openssl: Verdict | None = None,
) -> Case:
    return Case(_directory(limit), _directory(name), verdict, openssl)


_OIDS = {"C": NameOID.COUNTRY_NAME, "O": NameOID.ORGANIZATION_NAME, "CN": NameOID.COMMON_NAME}


def _directory(parts: Mapping[str, str]) -> x509.DirectoryName:
    """Return the name; its parts in the order of the certificate, the widest first."""
    return x509.DirectoryName(
        x509.Name([x509.NameAttribute(_OIDS[key], text) for key, text in parts.items()])
    )


CASES = (
    # A DNS name is within by its last labels. The RFC knows no leading dot here; where one stands
    # it asks for one label more, as in openssl.
    _dns("example.com", "example.com", IN),
    _dns("example.com", "a.example.com", IN),
    _dns("example.com", "a.b.example.com", IN),
    _dns("example.com", "aexample.com", OUT),
    _dns("example.com", "example.com.test", OUT),
    _dns("example.com", "com", OUT),
    _dns("EXAMPLE.com", "a.example.COM", IN),
    _dns("com", "example.com", IN),
    _dns("", "example.com", IN),
    _dns(".example.com", "a.example.com", IN),
    _dns(".example.com", "example.com", OUT),
    _dns("a.example.com", "example.com", OUT),
    # A wildcard may stand for a name within, and is not within itself: the plugin refuses it on
    # either side, which openssl does not.
    _dns("a.example.com", "*.example.com", DOUBT, openssl=OUT, bridge=False),
    _dns("example.com", "*.example.com", IN, bridge=False),
    # A dot at the end, an empty label and a space are no names of hosts.
    _dns("example.com", "example.com.", DOUBT, openssl=OUT, bridge=False),
    _dns("example.com", "a..example.com", DOUBT, openssl=IN, bridge=False),
    _dns("example.com", " example.com", DOUBT, openssl=OUT, bridge=False),
    # A URI is within by its host: whole, or, with a leading dot, by at least one label more.
    _host("mesh.example.com", "mesh.example.com", IN),
    _host("mesh.example.com", "a.mesh.example.com", OUT),
    _host("example.com", "mesh.example.com", OUT),
    _host(".example.com", "mesh.example.com", IN),
    _host(".example.com", "a.mesh.example.com", IN),
    _host(".mesh.example.com", "mesh.example.com", OUT),
    _host(".example.com", "aexample.com", OUT),
    _host("MESH.example.com", "mesh.example.com", IN),
    _host(".EXAMPLE.com", "mesh.example.com", IN),
    _host("other.test", "mesh.example.com", OUT),
    _uri("mesh.example.com", "https://mesh.example.com:8443/x", IN, bridge=False),
    _uri("mesh.example.com", "spiffe://evil.test/mesh.example.com", OUT, bridge=False),
    # openssl takes the user for a part of the host.
    _uri("a.test", "spiffe://a.test@evil.test/", DOUBT, openssl=OUT, bridge=False),
    _uri("10.0.0.1", "spiffe://10.0.0.1/", DOUBT, openssl=IN, bridge=False),
    # A directory name is within by its first parts, whatever their case and spaces (section 7.1).
    _subject({"O": "Mesh"}, {"O": "Mesh"}, IN),
    _subject({"O": "Mesh"}, {"O": "Mesh", "CN": "CA"}, IN),
    _subject({"O": "Mesh", "CN": "CA"}, {"O": "Mesh"}, OUT),
    _subject({"CN": "CA"}, {"O": "Mesh", "CN": "CA"}, OUT),
    _subject({"O": "Mesh"}, {"C": "FR", "O": "Mesh"}, OUT),
    _subject({"O": "MESH"}, {"O": "mesh"}, IN),
    _subject({"O": " Mesh  of  Example "}, {"O": "mesh of example"}, IN),
    _subject({"O": "Mesh"}, {"O": "Meshes"}, OUT),
    _subject({"C": "FR"}, {"C": "FR", "O": "É"}, IN),
    # openssl folds the case of ASCII only.
    _subject({"O": "ÉTAT"}, {"O": "état"}, IN, OUT),
    # Addresses are within a network of their own family.
    _address("10.0.0.0/8", "10.1.2.3", IN),
    _address("10.0.0.0/8", "11.1.2.3", OUT),
    _address("10.0.0.0/8", "::a00:1", OUT),
    _address("0.0.0.0/0", "10.1.2.3", IN),
    _address("2001:db8::/32", "2001:db8::1", IN),
    _address("2001:db8::/32", "2001:db9::1", OUT),
    # No part of a mesh has an e-mail address: one below a constraint is refused.
    _mail("example.com", "a@example.com", IN),
    _mail("a@example.com", "b@example.com", OUT),
    _mail(".example.com", "a@b.example.com", IN),
)
