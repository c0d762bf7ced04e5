import base64

import pytest
from cryptography.hazmat.primitives import serialization

from istio_hsm_installer import canaries
from istio_hsm_installer.canaries import Known
from tests.support import pki

KEY = pki.root().key


def pem(encryption: serialization.KeySerializationEncryption) -> bytes:
    return KEY.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )


PLAIN = pem(serialization.NoEncryption())
LOCKED = pem(serialization.BestAvailableEncryption(b"passphrase"))


@pytest.mark.parametrize(
    "content",
    [
        PLAIN,
        LOCKED,
        PLAIN.replace(b"\n", b"\\n"),
        base64.b64encode(PLAIN),
        base64.urlsafe_b64encode(PLAIN).rstrip(b"="),
        b'{"key": "' + b"".join(LOCKED.splitlines()[1:-1]) + b'"}',
        b"token s.aBcDeFgHiJkLmNoPqRsTuVwX",
        b"hvb.AAAAAQJ" + b"x" * 40,
        b"eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl",
    ],
)
def test_what_has_the_shape_of_a_secret_is_found(content: bytes) -> None:
    assert canaries.find(b"before\n" + content + b"\nafter", [])


@pytest.mark.parametrize(
    "content",
    [
        pki.root().pem,
        base64.b64encode(pki.root().pem),
        b"namespaces.thisisalongnamewithoutanydotsinit",
        b"eyJhbGciOiJkaXIifQ..aXY.Y2lwaGVy.dGFn",
        b"M" * 200,
        b"sha256:" + b"ab" * 32,
        b"",
    ],
)
def test_what_is_public_is_not(content: bytes) -> None:
    assert canaries.find(content, []) == []


@pytest.mark.parametrize(
    ("content", "is_found"),
    [
        (b"PIN=4711;", True),
        (b"at 14711 ms", False),
        (b"NDcxMQ", True),
        (b"34373131", True),
    ],
)
def test_a_short_value_counts_where_it_stands_alone(content: bytes, *, is_found: bool) -> None:
    assert bool(canaries.find(content, [Known("the PIN", b"4711\n".strip())])) is is_found


def test_one_line_of_a_known_text_is_enough() -> None:
    line = PLAIN.splitlines()[1]
    assert canaries.find(b"x" + line, [Known("the key", PLAIN)]) == ["the key"]
    assert canaries.find(b"-----END PRIVATE KEY-----", [Known("the key", PLAIN)]) == []


def test_a_known_secret_does_not_show_itself() -> None:
    assert "4711" not in repr(Known("the PIN", b"4711"))
