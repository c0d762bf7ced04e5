"""Nasty inputs: the files of tests/corpus, and those too large to keep, made here."""

import base64
from collections.abc import Mapping
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "corpus"
_BEGIN, _END = b"-----BEGIN CERTIFICATE-----\n", b"-----END CERTIFICATE-----\n"


@cache
def entries() -> Mapping[str, bytes]:
    """Return every entry by its name; the names of files are those in the folder."""
    files = {path.name: path.read_bytes() for path in sorted(FOLDER.iterdir())}
    return {name: content for name, content in files.items() if name != "README.md"} | _large()


def _large() -> dict[str, bytes]:
    sound = (FOLDER / "certificate-sound.pem").read_bytes()
    line = base64.b64encode(bytes(48)) + b"\n"
    return {
        "large: a PEM of one long line": _BEGIN + b"A" * (1 << 20) + b"\n" + _END,
        "large: a PEM of many lines": _BEGIN + line * (1 << 14) + _END,
        "large: many certificates": sound * 2000,
        "large: many PEM marks": _BEGIN * 20_000,
        "large: many dots": b"." * (1 << 20),
        "large: one line": b"x" * ((1 << 20) + 1),
        "large: an octet string": b"\x04\x83\x0f\xff\xfb" + bytes((1 << 20) - 5),
        "large: nested arrays": b"[" * 200_000,
        "large: nested objects": b'{"a":' * 100_000,
        "large: a number": b"9" * (1 << 19),
        "large: many keys": b"{" + b",".join(b'"k%d":%d' % (n, n) for n in range(50_000)) + b"}",
        "large: nested mappings": b"{a: " * 20_000,
        "large: indented lists": b"- " * 20_000,
        "large: white space": b" \t\r\n" * (1 << 18),
    }
