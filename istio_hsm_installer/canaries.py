"""Looks for secrets in what is about to leave the house. Pure.

A hit names the kind of secret and never the secret. Values that are known are looked for as they
are, in base64 and in hexadecimal; of a text of several lines, each long line.
"""

import base64
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

_MIN_LINE = 16
"""Shorter lines of a known text, such as `-----END`, tell nothing."""

_SHORT = 12
"""Up to this length a known value counts only where it stands alone."""

_PRIVATE_PEM = re.compile(rb"-----BEGIN[ A-Z0-9]*PRIVATE KEY-----")
_SHAPES = (
    ("a PEM private key", _PRIVATE_PEM),
    ("a JWT", re.compile(rb"eyJ[\w-]{6,}\.eyJ[\w-]{6,}\.[\w-]{6,}")),
    ("a Vault token", re.compile(rb"(?<![\w.-])(?:hv[sbr]|[sbr])\.[A-Za-z0-9_-]{24,}")),
)
_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{60,}={0,2}")
_PEM_IN_BASE64 = b"LS0tLS"
_DER_IN_BASE64 = b"M"


@dataclass(frozen=True, slots=True)
class Known:
    """A secret whose value is known here."""

    kind: str
    value: bytes = field(repr=False)


def find(content: bytes, known: Collection[Known]) -> Sequence[str]:
    """Return the kinds of secrets in the content, each once."""
    found = [kind for kind, shape in _SHAPES if shape.search(content)]
    if any(_is_private_key(run[0]) for run in _BASE64.finditer(content)):
        found.append("a private key in base64")
    found += [secret.kind for secret in known if _holds(content, secret.value)]
    return list(dict.fromkeys(found))


def _is_private_key(text: bytes) -> bool:
    if not text.startswith((_PEM_IN_BASE64, _DER_IN_BASE64)):
        return False
    whole = text.rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
    try:
        decoded = base64.b64decode(whole + b"=" * (-len(whole) % 4))
        if not _PRIVATE_PEM.search(decoded):
            serialization.load_der_private_key(decoded, None)
    except (
        UnsupportedAlgorithm,
        TypeError,
    ):  # of an unknown kind, or encrypted: a key all the same
        return True
    except ValueError:  # binascii's, too
        return False
    return True


def _holds(content: bytes, value: bytes) -> bool:
    return any(
        _stands_alone(content, form) if len(form) <= _SHORT else form in content
        for form in _forms(value)
    )


def _forms(value: bytes) -> Iterator[bytes]:
    lines = [line.strip() for line in value.splitlines()]
    if len(lines) > 1:
        yield from (line for line in lines if len(line) >= _MIN_LINE and b"-----" not in line)
    elif value.strip():
        yield value.strip()
    if value.strip():
        yield base64.b64encode(value).rstrip(b"=")
        yield value.hex().encode()


def _stands_alone(content: bytes, value: bytes) -> bool:
    return (
        re.search(rb"(?<![0-9A-Za-z])" + re.escape(value) + rb"(?![0-9A-Za-z])", content)
        is not None
    )
