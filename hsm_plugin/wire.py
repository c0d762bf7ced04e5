"""Messages between the server and its worker process: one packet each, of byte strings.

A request is an id, a deadline, an operation and its arguments; an answer is the id, a kind and
its results. They travel on a SOCK_SEQPACKET pair (unix(7)), which keeps packets whole and lets
any thread of the worker take the next one. Both ends are the same version of this package.
"""

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, unique

from hsm_plugin import errors
from hsm_plugin.errors import BadRequestError, ConflictError, HsmPluginError
from hsm_plugin.recovery import Action

MAX_PACKET_BYTES = 160 << 10
"""Less than the smallest usual SO_SNDBUF: a packet always fits into an empty socket."""

PART_BYTES = 64 << 10
"""Results longer than this are sent in several packets of kind MORE and a last one."""

_REQUEST = struct.Struct("=QdBH")
_ANSWER = struct.Struct("=QBH")
_LENGTH_BYTES = 4
_MAX_TEXT = 4096


@unique
class Operation(IntEnum):
    """What is asked of the worker."""

    LOAD_MODULE = 0
    CONNECT = 1
    PROBE = 2
    GENERATE_KEK = 3
    WRAP = 4
    UNWRAP = 5
    GENERATE_SIGNING_KEY = 6
    SIGNING_KEY = 7
    SIGN = 8
    ADD_ROOT = 9
    ROOTS = 10
    SIGN_BATCH = 11
    SIGNING_KEYS = 12
    DESTROY_SIGNING_KEY = 13
    SAME_PIN = 14
    MAKE_DEKS = 15
    DESTROY_KEK = 20
    SNAPSHOT = 100
    INSPECT = 101


ONE_AT_A_TIME = frozenset(
    {
        Operation.GENERATE_KEK,
        Operation.GENERATE_SIGNING_KEY,
        Operation.DESTROY_SIGNING_KEY,
        Operation.DESTROY_KEK,
        Operation.SIGNING_KEYS,
        Operation.INSPECT,
        Operation.ADD_ROOT,
    }
)
"""What makes or ends objects, or reads them all: slow, so it may not fill all threads."""


class Kind(IntEnum):
    """What an answer holds."""

    DONE = 0
    MORE = 1
    """A part of the results; the packets that follow hold the rest."""
    FAILED = 2
    FAILED_TOKEN_LOST = 3
    """The token must be connected again, at once."""
    FAILED_HSM_DOWN = 4
    """The token must be connected again, after a pause."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request as the worker reads it."""

    number: int
    deadline: float
    """On the monotonic clock, which all processes of a machine share."""
    operation: Operation
    fields: list[bytes]


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as the server reads it."""

    number: int
    kind: Kind
    fields: list[bytes]


def encode_request(
    number: int, deadline: float, operation: Operation, fields: Sequence[bytes]
) -> bytes:
    """Return the packet; BadRequestError when it would be too large."""
    packet = _REQUEST.pack(number, deadline, operation, len(fields)) + _encode(fields)
    if len(packet) > MAX_PACKET_BYTES:
        raise BadRequestError(
            f"the request holds {len(packet)} bytes for the token, more than {MAX_PACKET_BYTES}",
            hint="an encrypted DEK has some 500 bytes, a certificate a few thousand",
        )
    return packet


def decode_request(packet: memoryview) -> Request:
    """Return what encode_request was given."""
    number, deadline, operation, count = _REQUEST.unpack_from(packet)
    fields = _decode(packet, _REQUEST.size, count)
    return Request(number, deadline, Operation(operation), fields)


def encode_answer(number: int, fields: Sequence[bytes]) -> list[bytes]:
    """Return the packets of a result, one as a rule; ConflictError when a part fits into none."""
    packets: list[bytes] = []
    part: list[bytes] = []
    size = 0
    for entry in fields:
        if len(entry) > MAX_PACKET_BYTES - PART_BYTES:
            raise ConflictError(
                f"the token holds a value of {len(entry)} bytes, more than any that is used",
                hint="look for the object with the HSM's own tools, and remove it",
            )
        if part and size + len(entry) > PART_BYTES:
            packets.append(_ANSWER.pack(number, Kind.MORE, len(part)) + _encode(part))
            part, size = [], 0
        part.append(entry)
        size += len(entry) + _LENGTH_BYTES
    packets.append(_ANSWER.pack(number, Kind.DONE, len(part)) + _encode(part))
    return packets


def encode_failure(number: int, error: HsmPluginError, loss: Action | None) -> bytes:
    """Return the packet of an error; `loss` says what the token needs when it is lost."""
    match loss:
        case None:
            kind = Kind.FAILED
        case Action.HSM_DOWN:
            kind = Kind.FAILED_HSM_DOWN
        case _:
            kind = Kind.FAILED_TOKEN_LOST
    text = json.dumps(
        [type(error).__name__, str(error)[:_MAX_TEXT], error.hint[:_MAX_TEXT]]
    ).encode()
    return _ANSWER.pack(number, kind, 1) + _encode([text])


def decode_answer(packet: memoryview) -> Answer:
    """Return the number, kind and results of an answer."""
    number, kind, count = _ANSWER.unpack_from(packet)
    return Answer(number, Kind(kind), _decode(packet, _ANSWER.size, count))


def decode_failure(answer: Answer) -> HsmPluginError:
    """Return the error that the worker met."""
    name, message, hint = json.loads(answer.fields[0])
    kind = getattr(errors, name, None)
    if not (isinstance(kind, type) and issubclass(kind, HsmPluginError)):
        kind = HsmPluginError
    return kind(message, hint=hint)


def _encode(fields: Sequence[bytes]) -> bytes:
    lengths = struct.pack(f"={len(fields)}I", *map(len, fields))
    return lengths + b"".join(fields)


def _decode(packet: memoryview, offset: int, count: int) -> list[bytes]:
    lengths = struct.unpack_from(f"={count}I", packet, offset)
    start = offset + 4 * count
    fields = []
    for length in lengths:
        fields.append(bytes(packet[start : start + length]))
        start += length
    return fields
