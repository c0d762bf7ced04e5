"""The offline root's revocation list, which proxies want beside that of the mesh's CA. Pure."""

from collections.abc import Iterable
from datetime import datetime, timedelta

from cryptography import x509

from istio_hsm_installer.ceremony import (
    CLOCK_SKEW,
    RootKey,
    authority_key_identifier,
    check_pair,
    hash_for,
)
from istio_hsm_installer.errors import InputError, RefusedError


def make_crl(
    root: x509.Certificate,
    root_key: RootKey,
    revoked: Iterable[int],
    *,
    lifetime: timedelta,
    now: datetime,
) -> x509.CertificateRevocationList:
    """Return the list, checked against the root after signing; with no serial it has no entry."""
    check_pair(root, root_key)
    if not _may_sign_lists(root):
        raise RefusedError(
            "the root's key usage forbids revocation lists, and proxies refuse those that it signs",
            hint="leave CA_CRL off, or use a root with cRLSign",
        )
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(root.subject)
        .last_update(now - CLOCK_SKEW)
        .next_update(now + lifetime)
        .add_extension(authority_key_identifier(root), critical=False)
        .add_extension(x509.CRLNumber(int(now.timestamp())), critical=False)
    )
    for serial in sorted(set(revoked)):
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now)
        builder = builder.add_revoked_certificate(entry.build())
    crl = builder.sign(root_key, hash_for(root_key))
    if not crl.is_signature_valid(root_key.public_key()):
        raise RefusedError("the signature on the list is not the root's")
    return crl


def serial_of(text: str) -> int:
    """Return a serial in hexadecimal, as openssl writes it; InputError otherwise."""
    try:
        serial = int(text.replace(":", ""), 16)
    except ValueError:
        serial = 0
    if not 0 < serial.bit_length() <= 160 or serial < 0:  # noqa: PLR2004 - 20 octets
        raise InputError(
            f"{text[:60]!r} is no serial in hexadecimal",
            hint="openssl x509 -noout -serial -in cert-chain.pem tells it",
        )
    return serial


def _may_sign_lists(root: x509.Certificate) -> bool:
    try:
        return root.extensions.get_extension_for_class(x509.KeyUsage).value.crl_sign
    except x509.ExtensionNotFound:
        return True
