"""PKCS#11 URIs (RFC 7512): text -> attributes -> text, pure.

What is understood is listed; the rest is refused by name, since an attribute that is passed over
would let a URI match more than its writer meant.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from urllib.parse import quote_from_bytes, unquote_to_bytes

from hsm_plugin.errors import BadRequestError

SCHEME = "pkcs11:"
MAX_URI_BYTES = 2048
_MAX_SLOT_ID = (1 << 64) - 1
_SLOT_ID = re.compile(r"[0-9]{1,20}", re.ASCII)
_ESCAPES = re.compile(r"(?:[A-Za-z0-9\-._~:\[\]@!$'()*+,=&]|%[0-9A-Fa-f]{2})*", re.ASCII)
"""pk11-pchar of RFC 7512, section 2.3."""

_UNRESERVED = "-._~"

_REASONS = {
    "pin-value": "it would show the PIN to every process of this host: write it into a file of "
    "mode 0400 and name the file in P11_PIN_FILE",
    "pin-source": "name the file in P11_PIN_FILE",
    "module-path": "name the module in P11_LIB",
    "module-name": "name the module in P11_LIB",
}
"""Query attributes (section 2.4), and where their values belong."""


class ObjectType(Enum):
    """The `type` of an object."""

    PUBLIC = "public"
    PRIVATE = "private"
    CERTIFICATE = "cert"
    SECRET_KEY = "secret-key"  # noqa: S105 - a kind of object
    DATA = "data"


@dataclass(frozen=True, slots=True)
class Pkcs11Uri:
    """The attributes of a URI; None: not given, so anything matches."""

    token: str | None = None
    serial: str | None = None
    manufacturer: str | None = None
    model: str | None = None
    slot_id: int | None = None
    object: str | None = None
    id: bytes | None = None
    type: ObjectType | None = None

    def __str__(self) -> str:
        """Return the URI, its attributes in this order."""
        texts = {
            "token": self.token,
            "serial": self.serial,
            "manufacturer": self.manufacturer,
            "model": self.model,
            "slot-id": None if self.slot_id is None else str(self.slot_id),
            "object": self.object,
        }
        parts = [
            f"{name}={quote_from_bytes(text.encode(), _UNRESERVED)}"
            for name, text in texts.items()
            if text is not None
        ]
        if self.id is not None:
            parts.append("id=" + "".join(f"%{byte:02X}" for byte in self.id))
        if self.type is not None:
            parts.append(f"type={self.type.value}")
        return SCHEME + ";".join(parts)

    @property
    def names_token(self) -> bool:
        """True when an attribute says which token."""
        named = (self.token, self.serial, self.manufacturer, self.model, self.slot_id)
        return any(value is not None for value in named)

    @property
    def names_object(self) -> bool:
        """True when an attribute says which object."""
        return any(value is not None for value in (self.object, self.id, self.type))


def is_uri(text: str) -> bool:
    """Tell whether a reference is meant as a PKCS#11 URI (a scheme has no case)."""
    return text[: len(SCHEME)].lower() == SCHEME


def parse(text: str) -> Pkcs11Uri:
    """Return the attributes; BadRequestError for what is malformed or not understood."""
    if not is_uri(text):
        raise _refused("it does not begin with pkcs11:")
    if len(text.encode(errors="surrogateescape")) > MAX_URI_BYTES:
        raise _refused(f"it is longer than {MAX_URI_BYTES} bytes")
    path, mark, query = text[len(SCHEME) :].partition("?")
    if mark:
        _refuse_query(query)
    values: dict[str, str | bytes | int | ObjectType] = {}
    for part in path.split(";") if path else []:
        name, equals, value = part.partition("=")
        reader = _READERS.get(name)
        if reader is None or not equals:
            raise _refused(f"the attribute {_shown(part)} is not understood")
        field, read = reader
        if field in values:
            raise _refused(f"{name} is given twice")
        if not _ESCAPES.fullmatch(value):
            raise _refused(f"the value of {name} has a character that must be written as %XX")
        values[field] = read(name, unquote_to_bytes(value))
    return Pkcs11Uri(**values)  # type: ignore[arg-type] # each reader returns its field's type


def _refuse_query(query: str) -> None:
    """Raise: nothing behind the question mark is taken, and the PIN least of all."""
    parts = {part.partition("=")[0]: part for part in reversed(query.split("&"))}
    name = next((known for known in _REASONS if known in parts), query.partition("&")[0])
    reason = _REASONS.get(name, "no attribute behind the question mark is")
    raise BadRequestError(f"{_shown(name)} in a PKCS#11 URI is not taken", hint=reason)


def _text(name: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise _refused(f"the value of {name} is not UTF-8") from None


def _bytes(_: str, value: bytes) -> bytes:
    return value


def _slot(name: str, value: bytes) -> int:
    text = _text(name, value)
    if not _SLOT_ID.fullmatch(text) or int(text) > _MAX_SLOT_ID:
        raise _refused("slot-id is not a number")
    return int(text)


def _type(name: str, value: bytes) -> ObjectType:
    try:
        return ObjectType(_text(name, value))
    except ValueError:
        known = ", ".join(kind.value for kind in ObjectType)
        raise _refused(f"type is none of {known}") from None


_READERS: dict[str, tuple[str, Callable[[str, bytes], str | bytes | int | ObjectType]]] = {
    "token": ("token", _text),
    "serial": ("serial", _text),
    "manufacturer": ("manufacturer", _text),
    "model": ("model", _text),
    "slot-id": ("slot_id", _slot),
    "object": ("object", _text),
    "id": ("id", _bytes),
    "type": ("type", _type),
}
"""Attribute -> our field, and how its value is read."""


def _shown(part: str) -> str:
    """Return a part's name as a message may show it: never a value, which could be a PIN.

    What has no equals sign is shown only where it is the name of an attribute.
    """
    name, equals, _ = part.partition("=")
    is_name = name.isascii() and name.replace("-", "").isalnum()
    is_known = name in _READERS or name in _REASONS
    return name[:32] if is_name and (equals or is_known) else "(no name)"


def _refused(why: str) -> BadRequestError:
    known = ", ".join(_READERS)
    return BadRequestError(
        f"the PKCS#11 URI is not taken: {why}", hint=f"RFC 7512; understood are: {known}"
    )
