"""Objects of a token: their templates, how one is found, and how a public key is read."""

import sys

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from hsm_plugin.cryptoki import Cryptoki, Template
from hsm_plugin.errors import ConflictError, KeyNotFoundError, UnsupportedError
from hsm_plugin.keys import (
    KEK_LABEL,
    ROOT_LABEL,
    SIGNING_KEY_LABEL,
    KeyAlgorithm,
    KeyKind,
    SigningKey,
    TrustedRoot,
)
from hsm_plugin.pkcs11_store_constants import X509, Attribute, KeyType, Mechanism, ObjectClass

_CURVE_PARAMETERS = {
    KeyAlgorithm.ECDSA_P256: bytes.fromhex("06082a8648ce3d030107"),
    KeyAlgorithm.ECDSA_P384: bytes.fromhex("06052b81040022"),
    KeyAlgorithm.ECDSA_P521: bytes.fromhex("06052b81040023"),
    KeyAlgorithm.ED25519: bytes.fromhex("06032b6570"),
}
"""DER of the curve's object identifier (RFC 5480, section 2.1.1.1; RFC 8410, section 3)."""

_ED25519_PARAMETERS = {
    _CURVE_PARAMETERS[KeyAlgorithm.ED25519],
    b"\x13\x0cedwards25519",
}
"""The identifier and the name (PKCS#11 3.0, section 2.3.10): tokens answer either."""

_ED25519_BYTES = 32

_CURVES: dict[bytes, tuple[KeyAlgorithm, ec.EllipticCurve, int]] = {
    _CURVE_PARAMETERS[KeyAlgorithm.ECDSA_P256]: (KeyAlgorithm.ECDSA_P256, ec.SECP256R1(), 65),
    _CURVE_PARAMETERS[KeyAlgorithm.ECDSA_P384]: (KeyAlgorithm.ECDSA_P384, ec.SECP384R1(), 97),
    _CURVE_PARAMETERS[KeyAlgorithm.ECDSA_P521]: (KeyAlgorithm.ECDSA_P521, ec.SECP521R1(), 133),
}
"""Algorithm, curve, and the length of an uncompressed point."""

_ALGORITHM_OF_BITS = {
    2048: KeyAlgorithm.RSA_2048,
    3072: KeyAlgorithm.RSA_3072,
    4096: KeyAlgorithm.RSA_4096,
}


def kek_template(kek_id: bytes, label: str = KEK_LABEL) -> Template:
    """Return the attributes of a new KEK: AES-256, for wrapping only, never to leave."""
    return {
        Attribute.CLASS: ObjectClass.SECRET_KEY,
        Attribute.KEY_TYPE: KeyType.AES,
        Attribute.VALUE_LEN: 32,
        Attribute.TOKEN: True,
        Attribute.PRIVATE: True,
        Attribute.SENSITIVE: True,
        Attribute.EXTRACTABLE: False,
        Attribute.LABEL: label.encode(),
        Attribute.ID: kek_id,
        Attribute.ENCRYPT: True,
        Attribute.DECRYPT: True,
        Attribute.WRAP: True,
        Attribute.UNWRAP: True,
        Attribute.SIGN: False,
        Attribute.VERIFY: False,
    }


def mac_template(kek_id: bytes, label: str) -> Template:
    """Return the attributes of a new HMAC key of 256 bits, for that only, never to leave."""
    return {
        Attribute.CLASS: ObjectClass.SECRET_KEY,
        Attribute.KEY_TYPE: KeyType.GENERIC_SECRET,
        Attribute.VALUE_LEN: 32,
        Attribute.TOKEN: True,
        Attribute.PRIVATE: True,
        Attribute.SENSITIVE: True,
        Attribute.EXTRACTABLE: False,
        Attribute.LABEL: label.encode(),
        Attribute.ID: kek_id,
        Attribute.SIGN: True,
        Attribute.VERIFY: True,
        Attribute.ENCRYPT: False,
        Attribute.DECRYPT: False,
        Attribute.WRAP: False,
        Attribute.UNWRAP: False,
    }


def key_pair_templates(
    key_id: bytes, algorithm: KeyAlgorithm
) -> tuple[Mechanism, Template, Template]:
    """Return how a signing key pair is made: mechanism, public and private attributes."""
    shared: Template = {
        Attribute.TOKEN: True,
        Attribute.LABEL: SIGNING_KEY_LABEL.encode(),
        Attribute.ID: key_id,
    }
    public: Template = {
        **shared,
        Attribute.CLASS: ObjectClass.PUBLIC_KEY,
        Attribute.PRIVATE: False,
        Attribute.VERIFY: True,
        Attribute.ENCRYPT: False,
        Attribute.WRAP: False,
    }
    private: Template = {
        **shared,
        Attribute.CLASS: ObjectClass.PRIVATE_KEY,
        Attribute.PRIVATE: True,
        Attribute.SENSITIVE: True,
        Attribute.EXTRACTABLE: False,
        Attribute.SIGN: True,
        Attribute.DECRYPT: False,
        Attribute.UNWRAP: False,
    }
    if algorithm.kind is KeyKind.RSA:
        size: Template = {
            Attribute.MODULUS_BITS: algorithm.rsa_bits,
            Attribute.PUBLIC_EXPONENT: b"\x01\x00\x01",
        }
        return Mechanism.RSA_PKCS_KEY_PAIR_GEN, {**public, **size}, private
    curve: Template = {Attribute.EC_PARAMS: _CURVE_PARAMETERS[algorithm]}
    edwards = algorithm.kind is KeyKind.EDWARDS
    mechanism = Mechanism.EC_EDWARDS_KEY_PAIR_GEN if edwards else Mechanism.EC_KEY_PAIR_GEN
    return mechanism, {**public, **curve}, private


def root_template(root: TrustedRoot) -> Template:
    """Return the attributes of a stored root certificate."""
    return {
        Attribute.CLASS: ObjectClass.CERTIFICATE,
        Attribute.CERTIFICATE_TYPE: X509,
        Attribute.TOKEN: True,
        Attribute.PRIVATE: False,
        Attribute.LABEL: ROOT_LABEL.encode(),
        Attribute.ID: root.ca_id,
        Attribute.SUBJECT: root.subject,
        Attribute.VALUE: root.certificate,
    }


def search(kind: ObjectClass, label: str, object_id: bytes | None = None) -> Template:
    """Return the template that finds the objects of a label, and of one id when it is given."""
    template: Template = {Attribute.CLASS: kind, Attribute.LABEL: label.encode()}
    return template if object_id is None else {**template, Attribute.ID: object_id}


def only(found: list[int], label: str, object_id: bytes) -> int:
    """Return the one handle that was found; KeyNotFoundError or ConflictError otherwise."""
    name = object_id.decode("ascii", errors="replace")
    if not found:
        raise KeyNotFoundError(
            f'no object "{label}" has the id "{name}"',
            hint="check the id and the token label",
        )
    if len(found) > 1:
        raise ConflictError(
            f'{len(found)} objects "{label}" have the id "{name}", so none is used',
            hint="find out which one is in use, and give the others another id",
        )
    return found[0]


def read_public_key(cryptoki: Cryptoki, session: int, handle: int, key_id: bytes) -> SigningKey:
    """Return the key of a public key object; UnsupportedError for one that cannot be used."""
    try:
        return _public_key(cryptoki, session, handle, key_id)
    except ValueError:  # of cryptography: other programs write such objects too
        raise UnsupportedError("the signing key's public half is malformed") from None


def _public_key(cryptoki: Cryptoki, session: int, handle: int, key_id: bytes) -> SigningKey:
    (kind,) = cryptoki.read(session, handle, [Attribute.KEY_TYPE])
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey
    algorithm: KeyAlgorithm | None
    match to_int(kind):
        case KeyType.RSA:
            n, e = cryptoki.read(session, handle, [Attribute.MODULUS, Attribute.PUBLIC_EXPONENT])
            key = rsa.RSAPublicNumbers(e=int.from_bytes(e), n=int.from_bytes(n)).public_key()
            algorithm = _ALGORITHM_OF_BITS.get(key.key_size)
        case KeyType.EC:
            curve, point = cryptoki.read(session, handle, [Attribute.EC_PARAMS, Attribute.EC_POINT])
            if curve not in _CURVES:
                raise UnsupportedError("the signing key's curve is not supported")
            algorithm, named, size = _CURVES[curve]
            # Some tokens give the point as it is, most in the OCTET STRING of the standard.
            key = ec.EllipticCurvePublicKey.from_encoded_point(named, point[-size:])
        case KeyType.EC_EDWARDS:
            curve, point = cryptoki.read(session, handle, [Attribute.EC_PARAMS, Attribute.EC_POINT])
            if curve not in _ED25519_PARAMETERS:
                raise UnsupportedError("the signing key's curve is not supported")
            algorithm = KeyAlgorithm.ED25519
            key = ed25519.Ed25519PublicKey.from_public_bytes(point[-_ED25519_BYTES:])
        case _:
            raise UnsupportedError("the signing key is neither RSA nor ECDSA nor Ed25519")
    if algorithm is None:
        raise UnsupportedError("the signing key has a size that is not supported")
    return SigningKey(
        key_id=key_id,
        algorithm=algorithm,
        public_key=key.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        ),
    )


def to_int(value: bytes) -> int:
    """Return the number of a CK_ULONG attribute."""
    return int.from_bytes(value, sys.byteorder)
