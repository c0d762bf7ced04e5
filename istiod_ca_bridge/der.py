"""The few DER shapes that wrap what `cryptography` encodes (X.690, section 8)."""

from collections.abc import Iterable
from datetime import datetime

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509 import (
    DuplicateExtension,
    Extension,
    ExtensionType,
    InvalidVersion,
    UnsupportedGeneralNameType,
)

MALFORMED = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    DuplicateExtension,
    InvalidVersion,
    UnsupportedGeneralNameType,
)
"""All that `cryptography` raises about bytes that are no certificate, CSR or key."""

_SEQUENCE = 0x30
_INTEGER = 0x02
_BIT_STRING = 0x03
_OCTET_STRING = 0x04
_OBJECT_IDENTIFIER = 0x06
_UTC_TIME = 0x17
_GENERALIZED_TIME = 0x18
_DNS_NAME = 0x82
_URI = 0x86
_CRITICAL = b"\x01\x01\xff"
_FIRST_GENERALIZED_YEAR = 2050
"""RFC 5280, section 4.1.2.5: UTCTime through 2049, GeneralizedTime after."""

_SHORT = 0x80
_HIGH_BIT = 0x80


def tlv(tag: int, value: bytes) -> bytes:
    """Return tag, length and value."""
    size = len(value)
    if size < _SHORT:
        return bytes((tag, size)) + value
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, _SHORT | len(length))) + length + value


def sequence(*parts: bytes) -> bytes:
    """Return a SEQUENCE of encoded parts."""
    return tlv(_SEQUENCE, b"".join(parts))


def context(number: int, value: bytes) -> bytes:
    """Return a constructed, explicitly tagged [number]."""
    return tlv(0xA0 | number, value)


def unsigned(number: int) -> bytes:
    """Return a non-negative INTEGER."""
    return tlv(_INTEGER, number.to_bytes(number.bit_length() // 8 + 1, "big"))


def bit_string(value: bytes) -> bytes:
    """Return a BIT STRING of whole bytes."""
    return tlv(_BIT_STRING, b"\x00" + value)


def time(moment: datetime) -> bytes:
    """Return a Time of an aware UTC datetime, to the second."""
    year, *others = moment.utctimetuple()[:6]
    month_to_second = b"%02d%02d%02d%02d%02dZ" % tuple(others)
    if year < _FIRST_GENERALIZED_YEAR:
        return tlv(_UTC_TIME, b"%02d%s" % (year % 100, month_to_second))
    return tlv(_GENERALIZED_TIME, b"%04d%s" % (year, month_to_second))


def object_identifier(dotted: str) -> bytes:
    """Return an OBJECT IDENTIFIER."""
    first, second, *others = (int(arc) for arc in dotted.split("."))
    return tlv(
        _OBJECT_IDENTIFIER, b"".join(_base128(arc) for arc in (40 * first + second, *others))
    )


def extension(entry: Extension[ExtensionType]) -> bytes:
    """Return an Extension (RFC 5280, section 4.1) whose value `cryptography` encodes."""
    return extension_of(
        object_identifier(entry.oid.dotted_string), entry.value.public_bytes(), entry.critical
    )


def extension_of(identifier: bytes, value: bytes, critical: bool) -> bytes:  # noqa: FBT001
    """Return an Extension of an encoded OBJECT IDENTIFIER and value."""
    return sequence(identifier, _CRITICAL if critical else b"", octets(value))


def octets(value: bytes) -> bytes:
    """Return an OCTET STRING."""
    return tlv(_OCTET_STRING, value)


def names(uris: Iterable[str], dns_names: Iterable[str]) -> bytes:
    """Return GeneralNames (RFC 5280, section 4.2.1.6): URIs, then DNS names."""
    return sequence(
        *(tlv(_URI, uri.encode("ascii")) for uri in uris),
        *(tlv(_DNS_NAME, name.encode("ascii")) for name in dns_names),
    )


def content(value: bytes) -> int:
    """Return where the content of an encoded value begins."""
    return _content(value, 0)[0]


def key_bits(subject_public_key_info: bytes) -> bytes:
    """Return the key's own bits: what key identifiers are made of (RFC 5280, section 4.2.1.2)."""
    algorithm, _ = _content(subject_public_key_info, 0)
    _, bits = _content(subject_public_key_info, algorithm)
    begin, end = _content(subject_public_key_info, bits)
    return subject_public_key_info[begin + 1 : end]


def signed(to_be_signed: bytes, algorithm_identifier: bytes, signature: bytes) -> bytes:
    """Return a certificate or certification request from its parts."""
    return sequence(to_be_signed, algorithm_identifier, bit_string(signature))


def _content(data: bytes, at: int) -> tuple[int, int]:
    """Return where the value begins and ends whose tag is at this place."""
    size, begin = data[at + 1], at + 2
    if size >= _SHORT:
        first = begin + (size & ~_SHORT)
        size, begin = int.from_bytes(data[begin:first], "big"), first
    return begin, begin + size


def _base128(arc: int) -> bytes:
    groups = [arc & 0x7F]
    while arc := arc >> 7:
        groups.append(arc & 0x7F | _HIGH_BIT)
    return bytes(reversed(groups))
