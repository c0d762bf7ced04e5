"""The CA key's certification request, as the guide's istiod makes it."""

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID

from istiod_ca_bridge import der
from istiod_ca_bridge.errors import CorruptSecretError, WrongProductError
from istiod_ca_bridge.signer import PublicKey, Signer, key_der, scheme_of

_VERSION_1 = der.unsigned(0)
_NO_ATTRIBUTES = der.context(0, b"")


async def certification_request(signer: Signer, organization: str) -> bytes:
    """Return a PEM CSR with subject O=<organization> alone, signed and checked."""
    subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization)])
    to_be_signed = der.sequence(
        _VERSION_1, subject.public_bytes(), key_der(signer.public_key), _NO_ATTRIBUTES
    )
    signature = await signer.sign(to_be_signed)
    product = der.signed(to_be_signed, scheme_of(signer.public_key).algorithm_identifier, signature)
    try:
        csr = x509.load_der_x509_csr(product)
        right = csr.is_signature_valid and csr.subject == subject
    except (InvalidSignature, *der.MALFORMED):
        right = False
    if not right:
        raise WrongProductError("the CA key's signature on its own CSR does not verify")
    return csr.public_bytes(serialization.Encoding.PEM)


def check_request(pem: bytes, public_key: PublicKey) -> None:
    """Return when the PEM is a CSR of this key; CorruptSecretError otherwise."""
    try:
        csr = x509.load_pem_x509_csr(pem)
        same = key_der(csr.public_key()) == key_der(public_key)
    except der.MALFORMED:
        raise CorruptSecretError("the decrypted CSR is not a certificate request") from None
    if not same:
        raise CorruptSecretError(
            "the stored CSR is of another key than the stored CA key",
            hint="delete istio-ca-cert-csr to have one made of this key",
        )
