"""Grant + CA -> certificate, checked after signing: nothing leaves that is not the grant.

The certificate is put together from parts that `cryptography` encodes, because its builder
wants the signature at once, while ours comes from the HSM later. The check parses the product
anew and compares each field and extension, so that it does not trust the assembly.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import ExtendedKeyUsageOID

from istiod_ca_bridge import der
from istiod_ca_bridge.errors import NotServingError, WrongProductError
from istiod_ca_bridge.policy import CLOCK_SKEW, Grant
from istiod_ca_bridge.signer import PublicKey, Signer, key_der, scheme_of, verification

_VERSION_3 = der.context(0, der.unsigned(2))
_EMPTY_NAME = der.sequence()
_KEY_USAGE = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=True,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)
_FIXED: list[x509.Extension[x509.ExtensionType]] = [
    x509.Extension(x509.KeyUsage.oid, True, _KEY_USAGE),  # noqa: FBT003 - critical
    x509.Extension(
        x509.ExtendedKeyUsage.oid,
        False,  # noqa: FBT003 - not critical
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
    ),
    x509.Extension(
        x509.BasicConstraints.oid,
        True,  # noqa: FBT003 - critical
        x509.BasicConstraints(ca=False, path_length=None),
    ),
]
_FIXED_DER = b"".join(der.extension(entry) for entry in _FIXED)
_KEY_IDENTIFIER = der.object_identifier(x509.SubjectKeyIdentifier.oid.dotted_string)
_ALTERNATIVE_NAME = der.object_identifier(x509.SubjectAlternativeName.oid.dotted_string)


@dataclass(frozen=True, slots=True)
class Issuer:
    """A CA certificate, its key, and what is the same in all that it issues."""

    certificate: x509.Certificate
    signer: Signer = field(repr=False)
    key: bytes = field(repr=False)
    """Its public half as DER SubjectPublicKeyInfo."""

    name: bytes = field(repr=False)
    algorithm_identifier: bytes = field(repr=False)
    authority_key_der: bytes = field(repr=False)
    verify: Callable[[bytes, bytes], None] = field(repr=False)
    """Raises InvalidSignature unless the first is the certified key's signature on the second."""

    right_algorithm: bytes = field(repr=False)
    """That of the certified key's signatures, for the check."""

    right_name: bytes = field(repr=False)
    """The certified one, for the check."""

    right_extensions: tuple[x509.Extension[x509.ExtensionType], ...] = field(repr=False)
    """Those that all have, for the check."""


def issuer(certificate: x509.Certificate, signer: Signer) -> Issuer:
    """Return the issuer of a CA certificate whose key the signer holds."""
    authority_key: x509.Extension[x509.ExtensionType] = x509.Extension(
        x509.AuthorityKeyIdentifier.oid,
        False,  # noqa: FBT003 - not critical
        _authority_key_identifier(certificate, signer.public_key),
    )
    certified = certificate.public_key()
    if key_der(certified) != key_der(signer.public_key):
        raise WrongProductError("the signer's key is not the key of the CA certificate")
    return Issuer(
        certificate=certificate,
        signer=signer,
        key=key_der(signer.public_key),
        name=certificate.subject.public_bytes(),
        algorithm_identifier=scheme_of(signer.public_key).algorithm_identifier,
        authority_key_der=der.extension(authority_key),
        verify=verification(signer.public_key),
        right_algorithm=scheme_of(signer.public_key).algorithm_identifier,
        right_name=certificate.subject.public_bytes(),
        right_extensions=(*_FIXED, authority_key),
    )


async def issue(by: Issuer, grant: Grant) -> x509.Certificate:
    """Return the certificate of the grant, signed and checked.

    KeyServiceUnavailableError when the key cannot be used now, NotServingError when the clock says
    that the CA has not begun, WrongProductError when the product is not the grant.
    """
    begins = by.certificate.not_valid_before_utc
    if grant.not_before + CLOCK_SKEW < begins:
        raise NotServingError(f"the CA certificate is not valid before {begins:%FT%TZ}")
    to_be_signed = der.sequence(
        _VERSION_3,
        der.unsigned(grant.serial),
        by.algorithm_identifier,
        by.name,
        der.sequence(der.time(grant.not_before), der.time(grant.not_after)),
        _EMPTY_NAME,
        grant.subject_key,
        der.context(3, der.sequence(_FIXED_DER, by.authority_key_der, _own_extensions(grant))),
    )
    signature = await by.signer.sign(to_be_signed)
    return checked(der.signed(to_be_signed, by.algorithm_identifier, signature), by, grant)


def checked(product: bytes, by: Issuer, grant: Grant) -> x509.Certificate:
    """Return the parsed product when it says what the grant says and the CA signed it."""
    try:
        certificate = x509.load_der_x509_certificate(product)
        extensions = list(certificate.extensions)
        to_be_signed = certificate.tbs_certificate_bytes
        by.verify(certificate.signature, to_be_signed)
        same_key = certificate.public_key() == grant.public_key
    except der.MALFORMED:
        raise WrongProductError("the signed certificate cannot be read") from None
    except InvalidSignature:
        raise WrongProductError(
            "the signature on the certificate is not the CA's",
            hint="the key that signed is not the key of the CA certificate",
        ) from None
    wrong = [
        name
        for name, right in (
            ("version", certificate.version is x509.Version.v3),
            ("serial", certificate.serial_number == grant.serial),
            ("issuer", _is_issued_by(by, grant.serial, to_be_signed)),
            ("algorithm", _is_signed_as(by, to_be_signed, product)),
            ("subject", not certificate.subject.rdns),
            ("not before", certificate.not_valid_before_utc == grant.not_before),
            ("not after", certificate.not_valid_after_utc == grant.not_after),
            ("CA's not after", grant.not_after <= by.certificate.not_valid_after_utc),
            ("public key", same_key),
            ("extensions", extensions == [*by.right_extensions, *_expected(grant)]),
        )
        if not right
    ]
    if wrong:
        raise WrongProductError(f"the signed certificate differs in {', '.join(wrong)}")
    return certificate


def _own_extensions(grant: Grant) -> bytes:
    """Return in DER what no other certificate has."""
    # A key identifier is no signature: SHA-1 is what RFC 5280, section 4.2.1.2, has there.
    identifier = hashlib.sha1(der.key_bits(grant.subject_key), usedforsecurity=False).digest()
    names = der.names(grant.uris, grant.dns_names)
    return der.extension_of(
        _KEY_IDENTIFIER, der.octets(identifier), critical=False
    ) + der.extension_of(_ALTERNATIVE_NAME, names, critical=True)


def _expected(grant: Grant) -> list[x509.Extension[x509.ExtensionType]]:
    """Return the same as `cryptography` makes it, for the check."""
    names = [
        *(x509.UniformResourceIdentifier(uri) for uri in grant.uris),
        *(x509.DNSName(name) for name in grant.dns_names),
    ]
    return [
        x509.Extension(
            x509.SubjectKeyIdentifier.oid,
            False,  # noqa: FBT003 - not critical
            x509.SubjectKeyIdentifier.from_public_key(grant.public_key),
        ),
        x509.Extension(
            x509.SubjectAlternativeName.oid,
            True,  # noqa: FBT003 - critical, for the subject is empty (RFC 5280, 4.2.1.6)
            x509.SubjectAlternativeName(names),
        ),
    ]


def _is_issued_by(by: Issuer, serial: int, to_be_signed: bytes) -> bool:
    """Return whether the signed part goes on, after the serial, as this CA's do.

    That is the algorithm inside the signature, and the issuer's name to the byte.
    """
    begin = _VERSION_3 + der.unsigned(serial) + by.right_algorithm + by.right_name
    return to_be_signed.startswith(begin, der.content(to_be_signed))


def _is_signed_as(by: Issuer, to_be_signed: bytes, product: bytes) -> bool:
    """Return whether what follows the signed part says the certified key's algorithm."""
    return product.startswith(to_be_signed + by.right_algorithm, der.content(product))


def _authority_key_identifier(
    certificate: x509.Certificate, public_key: PublicKey
) -> x509.AuthorityKeyIdentifier:
    try:
        subject = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except x509.ExtensionNotFound:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(public_key)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(subject.value)
