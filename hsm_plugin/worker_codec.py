"""Results of a KeyStore as byte strings, and back."""

import struct
from collections.abc import Sequence

from hsm_plugin import wire
from hsm_plugin.errors import ConflictError
from hsm_plugin.keys import (
    InspectedKey,
    KeyAlgorithm,
    ListedKey,
    SigningKey,
    TokenIdentity,
    TrustedRoot,
)

_ROOT_FIELDS = 3
_LISTED_FIELDS = 4
_INSPECTED_FIELDS = 3
_SHOWN_BYTES = 64


def encode_bool(value: bool) -> bytes:  # noqa: FBT001 - the value is what is encoded
    """Return one byte."""
    return b"\1" if value else b"\0"


def decode_bool(value: bytes) -> bool:
    """Return what encode_bool was given."""
    return value == b"\1"


def encode_seconds(seconds: float) -> bytes:
    """Return eight bytes."""
    return struct.pack("=d", seconds)


def decode_seconds(value: bytes) -> float:
    """Return what encode_seconds was given."""
    seconds: float = struct.unpack("=d", value)[0]
    return seconds


def encode_signing_key(key: SigningKey) -> list[bytes]:
    """Return three fields."""
    return [key.key_id, key.algorithm.value.encode(), key.public_key]


def decode_signing_key(fields: list[bytes]) -> SigningKey:
    """Return what encode_signing_key was given."""
    key_id, algorithm, public_key = fields
    return SigningKey(key_id, KeyAlgorithm(algorithm.decode()), public_key)


def encode_listed_keys(keys: list[ListedKey]) -> list[bytes]:
    """Return four fields for each key."""
    fields: list[bytes] = []
    for entry in keys:
        algorithm = entry.key.algorithm.value.encode() if entry.key else b""
        public_key = entry.key.public_key if entry.key else b""
        fields += [entry.key_id, algorithm, public_key, entry.fault.encode()]
    return fields


def decode_listed_keys(fields: list[bytes]) -> list[ListedKey]:
    """Return what encode_listed_keys was given."""
    keys = []
    for start in range(0, len(fields), _LISTED_FIELDS):
        *key, fault = fields[start : start + _LISTED_FIELDS]
        known = None if fault else decode_signing_key(key)
        keys.append(ListedKey(key[0], known, fault.decode()))
    return keys


def encode_inspected_keys(keys: list[InspectedKey]) -> list[bytes]:
    """Return three fields for each key."""
    fields: list[bytes] = []
    for key in keys:
        flags = (key.sensitive, key.extractable, key.never_extractable, key.local)
        fields += [key.key_id, key.label.encode(), bytes(flags)]
    return fields


def decode_inspected_keys(fields: list[bytes]) -> list[InspectedKey]:
    """Return what encode_inspected_keys was given."""
    keys = []
    for start in range(0, len(fields), _INSPECTED_FIELDS):
        key_id, label, flags = fields[start : start + _INSPECTED_FIELDS]
        keys.append(InspectedKey(key_id, label.decode(), *map(bool, flags)))
    return keys


def encode_roots(roots: list[TrustedRoot]) -> list[bytes]:
    """Return three fields for each root; ConflictError names one that is larger than any is."""
    for root in roots:
        size = max(len(root.ca_id), len(root.subject), len(root.certificate))
        if size > wire.PART_BYTES:
            raise ConflictError(
                f"the root under CA id {root.ca_id[:_SHOWN_BYTES]!r} in the token has a value of"
                f" {size} bytes, more than {wire.PART_BYTES}",
                hint="it was not imported here; remove it with the HSM's own tools",
            )
    return [part for root in roots for part in (root.ca_id, root.subject, root.certificate)]


def decode_roots(fields: list[bytes]) -> list[TrustedRoot]:
    """Return what encode_roots was given."""
    starts = range(0, len(fields), _ROOT_FIELDS)
    return [TrustedRoot(*fields[start : start + _ROOT_FIELDS]) for start in starts]


def encode_identity(identity: TokenIdentity) -> list[bytes]:
    """Return seven fields."""
    numbers = (str(identity.slot_id), str(identity.session_limit), str(identity.rank))
    texts = (identity.label, identity.serial, identity.model, identity.passed_over, *numbers)
    return [text.encode() for text in texts]


def decode_identity(fields: list[bytes]) -> TokenIdentity:
    """Return what encode_identity was given."""
    label, serial, model, passed_over, *numbers = (entry.decode() for entry in fields)
    slot_id, session_limit, rank = map(int, numbers)
    return TokenIdentity(label, serial, model, slot_id, session_limit, rank, passed_over)


def encode_order(order: Sequence[int]) -> list[bytes]:
    """Return a field for each place in the list of tokens."""
    return [str(rank).encode() for rank in order]


def decode_order(fields: list[bytes]) -> list[int]:
    """Return what encode_order was given."""
    return [int(entry) for entry in fields]
