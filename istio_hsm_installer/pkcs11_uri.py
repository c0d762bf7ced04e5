"""A PKCS#11 URI (RFC 7512) of a signing key: which module, token and key, and where the PIN is.

Pure. The key is named by its id; the PIN by a file, never by its value.
"""

import re
from dataclasses import dataclass
from urllib.parse import unquote

from istio_hsm_installer.errors import InputError

_SCHEME = "pkcs11:"
_EXAMPLE = (
    "write pkcs11:token=LABEL;id=KEY?module-path=/usr/lib/.../lib.so&pin-source=file:/path/to/pin"
)
_MAX_LENGTH = 4096
_PATH = ("token", "id")
_QUERY = ("module-path", "pin-source")
_IGNORED = ("type",)
_PIN = "pin-value"
_NAME = re.compile(r"[a-z][a-z-]{0,31}", re.ASCII)
_CHARACTERS = re.compile(r"(?:[A-Za-z0-9\-._~:\[\]@!$'()*+,=&/?|]|%[0-9A-Fa-f]{2})*", re.ASCII)
"""pk11-pchar and pk11-qchar of RFC 7512, section 2.3; what separates is gone by then."""


@dataclass(frozen=True, slots=True)
class KeyUri:
    """A signing key in a token."""

    module: str
    token: str
    key_id: str
    pin_file: str


def parse(text: str) -> KeyUri:
    """Return what the URI names; InputError says which part is missing or not understood."""
    if text[: len(_SCHEME)].lower() != _SCHEME or len(text) > _MAX_LENGTH:
        raise InputError("this is no PKCS#11 URI", hint=_EXAMPLE)
    path, _, query = text[len(_SCHEME) :].partition("?")
    if any(part.startswith(_PIN) for part in re.split("[;&?]", text[len(_SCHEME) :])):
        raise InputError(
            "pin-value would show the PIN to every process of this host",
            hint="write the PIN into a file of mode 0400, and name it by pin-source=file:",
        )
    values = _attributes(path, ";", _PATH + _IGNORED) | _attributes(query, "&", _QUERY)
    if missing := [name for name in (*_PATH, *_QUERY) if not values.get(name)]:
        raise InputError(f"the PKCS#11 URI has no {missing[0]}", hint=_EXAMPLE)
    return KeyUri(
        module=values["module-path"],
        token=values["token"],
        key_id=values["id"],
        pin_file=_pin_file(values["pin-source"]),
    )


def _pin_file(source: str) -> str:
    path = source.removeprefix("file:")
    path = path.removeprefix("//")  # file://, and no host
    if not path or path.startswith("|"):
        raise InputError("pin-source names no file, and no program is run for it", hint=_EXAMPLE)
    return path


def _attributes(part: str, separator: str, known: tuple[str, ...]) -> dict[str, str]:
    """Return the values by name; a refusal shows a name that is known, and never a value."""
    found: dict[str, str] = {}
    for entry in filter(None, part.split(separator)):
        name, equals, value = entry.partition("=")
        if name not in known:
            shown = name if equals and _NAME.fullmatch(name) else "an attribute"
            raise InputError(
                f"{shown} is not understood at this place of the PKCS#11 URI", hint=_EXAMPLE
            )
        if not equals or name in found:
            raise InputError(f"{name} stands wrongly in the PKCS#11 URI", hint=_EXAMPLE)
        found[name] = _text(name, value)
    return found


def _text(name: str, value: str) -> str:
    if not _CHARACTERS.fullmatch(value):
        raise InputError(
            f"{name} of the PKCS#11 URI has a character that must be written as %XX", hint=_EXAMPLE
        )
    try:
        text = unquote(value, errors="strict")
    except UnicodeDecodeError:
        raise InputError(f"{name} of the PKCS#11 URI is not UTF-8", hint=_EXAMPLE) from None
    if not text.isprintable():
        raise InputError(f"{name} of the PKCS#11 URI has an unprintable character", hint=_EXAMPLE)
    return text
