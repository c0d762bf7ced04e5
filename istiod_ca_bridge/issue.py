"""Grant + CA -> certificate, checked after signing: nothing leaves that is not the grant.

The certificate is put together from parts that `cryptography` encodes, because its builder
wants the signature at once, while ours comes from the HSM later. The check parses the product
anew and compares each field and extension, so that it does not trust the assembly.
"""

import hashlib
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import ExtendedKeyUsageOID

from istiod_ca_bridge import der
from istiod_ca_bridge.errors import NotServingError, WrongProductError
from istiod_ca_bridge.policy import CLOCK_SKEW, Grant
from istiod_ca_bridge.signer import PublicKey, Signer, key_der, scheme_of

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
    authority_key: x509.Extension[x509.ExtensionType] = field(repr=False)
    authority_key_der: bytes = field(repr=False)


def issuer(certificate: x509.Certificate, signer: Signer) -> Issuer:
    """Return the issuer of a CA certificate whose key the signer holds."""
    authority_key: x509.Extension[x509.ExtensionType] = x509.Extension(
        x509.AuthorityKeyIdentifier.oid,
        False,  # noqa: FBT003 - not critical
        _authority_key_identifier(certificate, signer.public_key),
    )
    return Issuer(
        certificate=certificate,
        signer=signer,
        key=key_der(signer.public_key),
        name=certificate.subject.public_bytes(),
        algorithm_identifier=scheme_of(signer.public_key).algorithm_identifier,
        authority_key=authority_key,
        authority_key_der=der.extension(authority_key),
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
        certificate.verify_directly_issued_by(by.certificate)
        key = certificate.public_key()
        same_key = key_der(key) == grant.subject_key
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
            ("subject", not certificate.subject.rdns),
            ("not before", certificate.not_valid_before_utc == grant.not_before),
            ("not after", certificate.not_valid_after_utc == grant.not_after),
            ("CA's not after", grant.not_after <= by.certificate.not_valid_after_utc),
            ("public key", same_key),
            ("extensions", extensions == [*_FIXED, by.authority_key, *_expected(grant)]),
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


def _authority_key_identifier(
    certificate: x509.Certificate, public_key: PublicKey
) -> x509.AuthorityKeyIdentifier:
    try:
        subject = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except x509.ExtensionNotFound:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(public_key)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(subject.value)
