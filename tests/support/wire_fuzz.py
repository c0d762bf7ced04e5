"""Messages of any protobuf type, made by chance, some of their values taken from a given pool."""

from collections.abc import Sequence

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

from tests.support import corpus

_NUMBERS = (0, 1, -1, 255, 2048, 1 << 31, (1 << 31) - 1, -(1 << 31), (1 << 63) - 1, -(1 << 63))
_SMALL = tuple(data for data in corpus.entries().values() if len(data) <= 4096)
_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, (1 << 64) - 1),
}


@st.composite
def requests(draw: st.DrawFn, kind: Descriptor, pool: Sequence[bytes]) -> bytes:
    """Return bytes for a method: chance alone, a message, or a message with a few bytes changed."""
    way = draw(st.integers(0, 5))
    if way == 0:
        return draw(st.binary(max_size=64) | st.sampled_from(_SMALL))
    data = bytearray(draw(_messages(kind, pool, 0)).SerializeToString())
    if way == 1 and data:
        for _ in range(draw(st.integers(1, 3))):
            data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data)


@st.composite
def _messages(draw: st.DrawFn, kind: Descriptor, pool: Sequence[bytes], depth: int) -> Message:
    message = GetMessageClass(kind)()
    for field in kind.fields:
        if draw(st.integers(0, 9)) == 0 or depth > 3:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            continue
        if field.is_repeated:
            values = [draw(_values(field, pool, depth)) for _ in range(draw(st.integers(0, 3)))]
            getattr(message, field.name).extend(values)
        elif field.message_type is not None:
            getattr(message, field.name).CopyFrom(draw(_values(field, pool, depth)))
        else:
            setattr(message, field.name, draw(_values(field, pool, depth)))
    return message


def _values(  # noqa: PLR0911 - one for each kind of field
    field: FieldDescriptor, pool: Sequence[bytes], depth: int
) -> st.SearchStrategy[object]:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_MESSAGE:
            assert field.message_type is not None
            return _messages(field.message_type, pool, depth + 1)
        case FieldDescriptor.CPPTYPE_BOOL:
            return st.booleans()
        case FieldDescriptor.CPPTYPE_ENUM:
            assert field.enum_type is not None
            # No RSA key: the token would be busy with it, and nothing would be learnt.
            cheap = [it.number for it in field.enum_type.values if "RSA_" not in it.name]
            return st.sampled_from([*cheap, 99, -1])
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return st.floats(width=32)
        case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_STRING:
            texts = [data.decode("utf-8", "replace") for data in _SMALL]
            return st.text(max_size=20) | st.sampled_from(texts)
        case kind:
            if kind in _INTEGERS:
                low, high = _INTEGERS[kind]
                return st.sampled_from([number for number in _NUMBERS if low <= number <= high])
            return st.sampled_from(pool) | st.sampled_from(_SMALL) | st.binary(max_size=40)
