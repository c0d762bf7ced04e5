"""Private keys that stay in a token: `cryptography` signs with them as with its own. Pure.

Only `sign` and the public half exist; everything that would need the key itself refuses.
"""

from collections.abc import Callable
from typing import NoReturn, Self, TypeAlias

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import NoDigestInfo, Prehashed

from istio_hsm_installer.errors import RefusedError

Buffer: TypeAlias = bytes | bytearray | memoryview
SignDigest = Callable[[str, bytes], bytes]
"""From the algorithm's name, as the plugin calls it, and a digest to the signature."""


def _stays() -> NoReturn:
    raise RefusedError("the root's key stays in its token", hint="sign with it")


class TokenRsaKey(rsa.RSAPrivateKey):
    """An RSA key in a token."""

    def __init__(self, public_key: rsa.RSAPublicKey, sign_digest: SignDigest) -> None:
        self._public_key, self._sign_digest = public_key, sign_digest

    @property
    def key_size(self) -> int:
        """Bits of the modulus."""
        return self._public_key.key_size

    def public_key(self) -> rsa.RSAPublicKey:
        """Return the public half."""
        return self._public_key

    def sign(
        self,
        data: Buffer,
        padding: padding.AsymmetricPadding,
        algorithm: Prehashed | hashes.HashAlgorithm | NoDigestInfo,
    ) -> bytes:
        """Return the signature that the token makes (PKCS #1 v1.5)."""
        del padding
        return self._sign_digest(f"RSA_PKCS1_{_name(algorithm)}", _digest(data, algorithm))

    def decrypt(self, ciphertext: bytes, padding: padding.AsymmetricPadding) -> bytes:
        """Refuse."""
        del ciphertext, padding
        _stays()

    def private_numbers(self) -> rsa.RSAPrivateNumbers:
        """Refuse."""
        _stays()

    def private_bytes(
        self,
        encoding: serialization.Encoding,
        format: serialization.PrivateFormat,  # noqa: A002 - the base class's name
        encryption_algorithm: serialization.KeySerializationEncryption,
    ) -> bytes:
        """Refuse."""
        del encoding, format, encryption_algorithm
        _stays()

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        del memo
        return self


class TokenEcKey(ec.EllipticCurvePrivateKey):
    """An elliptic-curve key in a token."""

    def __init__(self, public_key: ec.EllipticCurvePublicKey, sign_digest: SignDigest) -> None:
        self._public_key, self._sign_digest = public_key, sign_digest

    @property
    def curve(self) -> ec.EllipticCurve:
        """The curve."""
        return self._public_key.curve

    @property
    def key_size(self) -> int:
        """Bits of the curve."""
        return self._public_key.key_size

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """Return the public half."""
        return self._public_key

    def sign(self, data: Buffer, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        """Return the signature that the token makes (ECDSA, DER)."""
        algorithm = signature_algorithm.algorithm
        return self._sign_digest(f"ECDSA_{_name(algorithm)}", _digest(data, algorithm))

    def exchange(self, algorithm: ec.ECDH, peer_public_key: ec.EllipticCurvePublicKey) -> bytes:
        """Refuse."""
        del algorithm, peer_public_key
        _stays()

    def private_numbers(self) -> ec.EllipticCurvePrivateNumbers:
        """Refuse."""
        _stays()

    def private_bytes(
        self,
        encoding: serialization.Encoding,
        format: serialization.PrivateFormat,  # noqa: A002 - the base class's name
        encryption_algorithm: serialization.KeySerializationEncryption,
    ) -> bytes:
        """Refuse."""
        del encoding, format, encryption_algorithm
        _stays()

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        del memo
        return self


def of(public_key: object, sign_digest: SignDigest) -> TokenRsaKey | TokenEcKey:
    """Return the private key of a public one."""
    if isinstance(public_key, rsa.RSAPublicKey):
        return TokenRsaKey(public_key, sign_digest)
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        return TokenEcKey(public_key, sign_digest)
    raise RefusedError("the root's key is neither RSA nor ECDSA", hint="use such a root")


def _name(algorithm: object) -> str:
    if not isinstance(algorithm, hashes.SHA256 | hashes.SHA384 | hashes.SHA512):
        raise RefusedError("the root signs with SHA-256, SHA-384 or SHA-512 only")
    return algorithm.name.upper()


def _digest(data: Buffer, algorithm: object) -> bytes:
    if not isinstance(algorithm, hashes.HashAlgorithm):
        _stays()
    digest = hashes.Hash(algorithm)
    digest.update(data)
    return digest.finalize()
