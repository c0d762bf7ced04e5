"""Elliptic keys made in software, for those who want the key itself: quick enough to do at once."""

from enum import Enum

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519


class EllipticCurve(Enum):
    """The curves of keys that are made here."""

    ED25519 = "Ed25519"
    P256 = "P-256"
    P384 = "P-384"


def make(curve: EllipticCurve) -> bytes:
    """Return a new private key, PEM of PKCS#8 (RFC 5958; RFC 8410 for Ed25519)."""
    key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey
    match curve:
        case EllipticCurve.ED25519:
            key = ed25519.Ed25519PrivateKey.generate()
        case EllipticCurve.P256:
            key = ec.generate_private_key(ec.SECP256R1())
        case EllipticCurve.P384:
            key = ec.generate_private_key(ec.SECP384R1())
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
