"""A PKCS#11 URI (RFC 7512) of a signing key: which module, token and key, and where the PIN is.

Pure. The key is named by its id; the PIN by a file, never by its value.
"""

from dataclasses import dataclass
from urllib.parse import unquote

from istio_hsm_installer.errors import InputError

_SCHEME = "pkcs11:"
_EXAMPLE = (
    "write pkcs11:token=LABEL;id=KEY?module-path=/usr/lib/.../lib.so&pin-source=file:/path/to/pin"
)
_MAX_LENGTH = 4096
_IGNORED = ("type",)


@dataclass(frozen=True, slots=True)
class KeyUri:
    """A signing key in a token."""

    module: str
    token: str
    key_id: str
    pin_file: str


def parse(text: str) -> KeyUri:
    """Return what the URI names; InputError says which part is missing or not understood."""
    if not text.startswith(_SCHEME) or len(text) > _MAX_LENGTH:
        raise InputError("this is no PKCS#11 URI", hint=_EXAMPLE)
    path, _, query = text.removeprefix(_SCHEME).partition("?")
    values = {**_attributes(path, ";"), **_attributes(query, "&")}
    if "pin-value" in values:
        raise InputError(
            "pin-value would show the PIN to every process of this host",
            hint="write the PIN into a file of mode 0400, and name it by pin-source=file:",
        )
    known = ("token", "id", "module-path", "pin-source")
    if other := sorted(set(values) - {*known, *_IGNORED}):
        raise InputError(f"{other[0]} is not understood in a PKCS#11 URI", hint=_EXAMPLE)
    if missing := [name for name in known if not values.get(name)]:
        raise InputError(f"the PKCS#11 URI has no {missing[0]}", hint=_EXAMPLE)
    return KeyUri(
        module=values["module-path"],
        token=values["token"],
        key_id=values["id"],
        pin_file=values["pin-source"].removeprefix("file:").removeprefix("//"),
    )


def _attributes(part: str, separator: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in filter(None, part.split(separator)):
        name, equals, value = entry.partition("=")
        if not equals or name in found:
            raise InputError(f"{name!r} stands wrongly in the PKCS#11 URI", hint=_EXAMPLE)
        try:
            found[name] = unquote(value, errors="strict")
        except UnicodeDecodeError:
            raise InputError(f"{name} of the PKCS#11 URI is not UTF-8", hint=_EXAMPLE) from None
    return found
