"""Whether a checkpoint's signature is that of a public key."""

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey

_SHA256 = Prehashed(hashes.SHA256())


def load(blob: bytes) -> PublicKey | None:
    """Return the key, from PEM or DER; None when it is neither RSA nor EC."""
    is_pem = blob.startswith(b"-----")
    read = serialization.load_pem_public_key if is_pem else serialization.load_der_public_key
    try:
        key = read(blob)
    except (ValueError, UnsupportedAlgorithm):
        return None
    return key if isinstance(key, PublicKey) else None


def to_der(key: PublicKey) -> bytes:
    """Return the SubjectPublicKeyInfo."""
    return key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def is_signed_by(public_key: bytes, mechanism: str, digest: bytes, signature: bytes) -> bool:
    """Tell whether this SHA-256 was signed with the key, and by this mechanism."""
    key = load(public_key)
    try:
        if isinstance(key, rsa.RSAPublicKey) and mechanism == "RSA_PKCS1_SHA256":
            key.verify(signature, digest, padding.PKCS1v15(), _SHA256)
        elif isinstance(key, ec.EllipticCurvePublicKey) and mechanism == "ECDSA_SHA256":
            key.verify(signature, digest, ec.ECDSA(_SHA256))
        else:
            return False
    except InvalidSignature:
        return False
    return True
