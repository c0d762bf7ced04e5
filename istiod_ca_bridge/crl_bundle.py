"""Revocation lists -> what proxies take as one file: a valid list of every CA in every chain.

Envoy, as Istio's agent sets it up, refuses each certificate once there are lists and one of the
CAs above that certificate, the root included, has none that is valid. So a bundle that lacks one
is worse than no bundle.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from istiod_ca_bridge.chain import CaChain, is_signed_by
from istiod_ca_bridge.der import MALFORMED
from istiod_ca_bridge.errors import CorruptSecretError
from istiod_ca_bridge.store import MAX_SECRET_BYTES

MAX_FURTHER_BYTES = 256 << 10
"""Of lists that others sign; with two of ours there is room in a ConfigMap."""

MAX_LISTS = 16
_PEM = re.compile(rb"-----BEGIN X509 CRL-----[^-]+-----END X509 CRL-----")
_MARK = b"-----BEGIN "

Crl = x509.CertificateRevocationList


@dataclass(frozen=True, slots=True)
class Bundle:
    """Lists in the order in which they are published, and the CAs that have none."""

    lists: tuple[Crl, ...] = ()
    lacking: tuple[x509.Certificate, ...] = field(default=(), repr=False)

    @property
    def pem(self) -> str:
        """Return the file's text."""
        return pem_of_lists(self.lists)


def lists_in(pem: bytes, most_bytes: int = MAX_SECRET_BYTES) -> tuple[Crl, ...]:
    """Return the lists of a PEM text; CorruptSecretError for anything else in it."""
    if len(pem) > most_bytes:
        raise CorruptSecretError(f"it has more than {most_bytes} bytes")
    blocks = _PEM.findall(pem)
    try:
        if len(blocks) > MAX_LISTS or len(blocks) != pem.count(_MARK):
            raise ValueError("other blocks")
        lists = tuple(x509.load_pem_x509_crl(block) for block in blocks)
        for crl in lists:
            _ = (crl.issuer, crl.last_update_utc, crl.next_update_utc, list(crl.extensions))
    except MALFORMED:
        raise CorruptSecretError(
            "it holds something else than revocation lists", hint="write PEM blocks of X509 CRL"
        ) from None
    return lists


def pem_of_lists(lists: Iterable[Crl]) -> str:
    """Return lists in PEM, one after the other."""
    return "".join(it.public_bytes(serialization.Encoding.PEM).decode("ascii") for it in lists)


def cas_above(chain: Sequence[x509.Certificate]) -> tuple[x509.Certificate, ...]:
    """Return the CA, its issuers and the root that ends its path, of a chain with all its roots."""
    path = [entry for entry in chain if entry.subject != entry.issuer]
    roots = [entry for entry in chain if entry.subject == entry.issuer]
    ends = [entry for entry in roots if not path or is_signed_by(path[-1], entry)]
    return (*path, *ends[:1])


def path_of(chain: CaChain) -> tuple[x509.Certificate, ...]:
    """Return the same of a checked chain."""
    return (*chain.intermediates, chain.roots[0])


def bundle(
    ours: Iterable[Crl],
    further: Iterable[Crl],
    required: Iterable[x509.Certificate],
    known: Iterable[x509.Certificate],
    now: datetime,
) -> Bundle:
    """Return our lists and those of the further ones that are of a known CA and valid now.

    `required`: the CAs above what is shown in the mesh; each must have a list.
    """
    cas = tuple(known)
    taken = [it for it in further if any(is_list_of(it, ca, now) for ca in cas)]
    lists = tuple({it.fingerprint(hashes.SHA256()): it for it in (*ours, *taken)}.values())
    return Bundle(lists, without_list(required, lists, now))


def without_list(
    required: Iterable[x509.Certificate], lists: Sequence[Crl], now: datetime
) -> tuple[x509.Certificate, ...]:
    """Return the CAs that have no valid list among these."""
    return tuple(
        ca for ca in dict.fromkeys(required) if not any(is_list_of(it, ca, now) for it in lists)
    )


def first_end(lists: Sequence[Crl], cas: Iterable[x509.Certificate]) -> datetime | None:
    """Return when the first of these CAs that have lists has, or had, none that is valid."""
    ends = []
    for ca in dict.fromkeys(cas):
        own = [it for it in lists if is_list_of(it, ca, it.last_update_utc)]
        until = [it.next_update_utc for it in own if it.next_update_utc is not None]
        if until and len(until) == len(own):  # a list without nextUpdate has no end
            ends.append(max(until))
    return min(ends, default=None)


def is_list_of(crl: Crl, ca: x509.Certificate, now: datetime) -> bool:
    """Tell whether a proxy takes the list as the CA's, now."""
    if crl.issuer != ca.subject or now < crl.last_update_utc:
        return False
    if crl.next_update_utc is not None and now >= crl.next_update_utc:
        return False
    if any(extension.critical for extension in crl.extensions):
        return False  # of a part of the certificates only
    try:
        return (
            _may_sign_lists(ca)
            and _names_key_of(crl, ca)
            and crl.is_signature_valid(ca.public_key())  # type: ignore[arg-type]  # else TypeError
        )
    except MALFORMED:
        return False


def _may_sign_lists(ca: x509.Certificate) -> bool:
    try:
        return ca.extensions.get_extension_for_class(x509.KeyUsage).value.crl_sign
    except x509.ExtensionNotFound:
        return True


def _names_key_of(crl: Crl, ca: x509.Certificate) -> bool:
    """Tell whether the key identifiers agree, where both have one."""
    try:
        named = crl.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
        own = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        return True
    return named.key_identifier in {None, own.key_identifier}
