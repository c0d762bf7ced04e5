"""Results of a KeyStore as byte strings, and back."""

from hsm_plugin.keys import KeyAlgorithm, SigningKey, TokenIdentity, TrustedRoot

_ROOT_FIELDS = 3


def encode_bool(value: bool) -> bytes:  # noqa: FBT001 - the value is what is encoded
    """Return one byte."""
    return b"\1" if value else b"\0"


def decode_bool(value: bytes) -> bool:
    """Return what encode_bool was given."""
    return value == b"\1"


def encode_signing_key(key: SigningKey) -> list[bytes]:
    """Return three fields."""
    return [key.key_id, key.algorithm.value.encode(), key.public_key]


def decode_signing_key(fields: list[bytes]) -> SigningKey:
    """Return what encode_signing_key was given."""
    key_id, algorithm, public_key = fields
    return SigningKey(key_id, KeyAlgorithm(algorithm.decode()), public_key)


def encode_roots(roots: list[TrustedRoot]) -> list[bytes]:
    """Return three fields for each root."""
    return [part for root in roots for part in (root.ca_id, root.subject, root.certificate)]


def decode_roots(fields: list[bytes]) -> list[TrustedRoot]:
    """Return what encode_roots was given."""
    starts = range(0, len(fields), _ROOT_FIELDS)
    return [TrustedRoot(*fields[start : start + _ROOT_FIELDS]) for start in starts]


def encode_identity(identity: TokenIdentity) -> list[bytes]:
    """Return five fields."""
    numbers = (str(identity.slot_id), str(identity.session_limit))
    texts = (identity.label, identity.serial, identity.model, *numbers)
    return [text.encode() for text in texts]


def decode_identity(fields: list[bytes]) -> TokenIdentity:
    """Return what encode_identity was given."""
    label, serial, model, slot_id, session_limit = (entry.decode() for entry in fields)
    return TokenIdentity(label, serial, model, int(slot_id), int(session_limit))
