"""A downloaded release and its signature: ECDSA P-256 over SHA-256, as the guide verifies it."""

from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

from istio_hsm_installer.certificates import MALFORMED
from istio_hsm_installer.errors import InputError, RefusedError
from istio_hsm_installer.files import read_file

GUIDE_KEY = b"""-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEWZrGCUaJJr1H8a36sG4UUoXvlXvZ
wQfk16sxprI2gOJ2vFFggdq3ixF2h4qNBt0kI7ciDhgpwS8t+/960IsIgw==
-----END PUBLIC KEY-----
"""
_CHUNK_BYTES = 1 << 20


def load_key(pem: bytes) -> ec.EllipticCurvePublicKey:
    """Return the verifying key; InputError unless it is a P-256 key."""
    try:
        key = serialization.load_pem_public_key(pem)
    except MALFORMED:
        raise InputError("the release's public key is not PEM") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InputError("the release's public key is not ECDSA on P-256")
    return key


def verify(archive: Path, signature: Path, key: ec.EllipticCurvePublicKey) -> None:
    """Return when the key signed the archive; RefusedError otherwise."""
    algorithm = hashes.SHA256()
    digest = hashes.Hash(algorithm)
    try:
        with archive.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise InputError(
            f"{archive} cannot be read: {error.strerror}", hint="download it, or correct the path"
        ) from None
    try:
        key.verify(read_file(signature), digest.finalize(), ec.ECDSA(utils.Prehashed(algorithm)))
    except InvalidSignature:
        raise RefusedError(
            f"{archive.name} was not signed by this key, or was changed since",
            hint="download the archive and its .1.sig again; do not install this one",
        ) from None
