"""The blobs on the wire, byte for byte, and every way in which one may be malformed."""

import base64
import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsm_plugin import envelope
from hsm_plugin.envelope import Dek, parse, protected_header, serialize
from hsm_plugin.errors import RejectedBlobError
from hsm_plugin.keys import Sealed
from tests.support import vectors

REFERENCE = vectors.interop()
KID = "b7a62308683780fbd429de155fd3299f7f614939b665b58ef18ddc5b5af8bfc1"
SOUND_HEADER = {"alg": "dir", "kid": "k", "enc": "A256GCM"}
SEALED = Sealed(iv=b"i" * 12, ciphertext=b"body", tag=b"t" * 16)


def encoded(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def blob(
    *,
    header: object = SOUND_HEADER,
    raw_header: bytes | None = None,
    sealed: Sealed = SEALED,
) -> bytes:
    protected = encoded(json.dumps(header).encode() if raw_header is None else raw_header)
    return serialize(protected, sealed)


def replaced(part: int, value: bytes) -> bytes:
    parts = blob().split(b".")
    parts[part] = value
    return b".".join(parts)


def without(member: str) -> dict[str, str]:
    return {key: value for key, value in SOUND_HEADER.items() if key != member}


def flipped(blob: bytes, part: int) -> bytes:
    parts = blob.split(b".")
    raw = bytearray(base64.urlsafe_b64decode(parts[part] + b"=" * (-len(parts[part]) % 4)))
    raw[0] ^= 1
    parts[part] = encoded(bytes(raw))
    return b".".join(parts)


# -- byte equality with the reference ------------------------------------------------------


def test_the_header_of_a_dek_blob_is_the_references_byte_for_byte() -> None:
    theirs = REFERENCE.dek_blob.split(b".")[0]
    assert protected_header(REFERENCE.kek_id.decode()) == theirs


def test_the_header_of_an_skey_blob_is_the_references_byte_for_byte() -> None:
    assert protected_header(KID) == REFERENCE.skey_blob.split(b".")[0]


@pytest.mark.parametrize("ciphertext", REFERENCE.ciphertexts, ids=range(3))
def test_the_header_of_a_ciphertext_is_the_references_byte_for_byte(
    ciphertext: vectors.Ciphertext,
) -> None:
    assert protected_header(KID, ciphertext.aad) == ciphertext.blob.split(b".")[0]


def test_the_jwk_of_the_references_dek_is_rebuilt_byte_for_byte() -> None:
    dek = Dek.from_jwk(vectors.DEK_JWK)
    assert dek.kid == KID
    assert dek.to_jwk() == vectors.DEK_JWK


def test_the_references_private_key_decrypts_under_its_dek() -> None:
    dek = Dek.from_jwk(vectors.DEK_JWK)
    assert dek.decrypt(REFERENCE.skey_blob) == REFERENCE.skey_pem


@pytest.mark.parametrize("ciphertext", REFERENCE.ciphertexts, ids=range(3))
def test_the_references_ciphertexts_decrypt_under_its_dek(ciphertext: vectors.Ciphertext) -> None:
    dek = Dek.from_jwk(vectors.DEK_JWK)
    assert dek.decrypt(ciphertext.blob, ciphertext.aad) == ciphertext.plaintext


def test_serializing_what_was_parsed_gives_the_references_blobs_again() -> None:
    for theirs in (REFERENCE.dek_blob, REFERENCE.skey_blob, REFERENCE.ciphertexts[0].blob):
        jwe = parse(theirs, "it")
        assert serialize(jwe.protected, jwe.sealed) == theirs


def test_iv_and_tag_have_the_lengths_that_the_reference_writes() -> None:
    assert len(parse(REFERENCE.dek_blob, "it").sealed.iv) == envelope.KEK_IV_BYTES == 16
    assert len(parse(REFERENCE.skey_blob, "it").sealed.iv) == envelope.DEK_IV_BYTES == 12
    ours = parse(Dek.generate().encrypt(b"x", b"aad"), "it")
    assert (len(ours.sealed.iv), len(ours.sealed.tag)) == (12, 16)


# -- a DEK encrypts and decrypts -----------------------------------------------------------


@given(plaintext=st.binary(max_size=4096), context=st.binary(max_size=512))
def test_what_a_dek_encrypts_it_decrypts(plaintext: bytes, context: bytes) -> None:
    dek = Dek.generate()
    assert dek.decrypt(dek.encrypt(plaintext, context), context) == plaintext


@given(plaintext=st.binary(max_size=64), context=st.binary(max_size=64), other=st.binary())
def test_a_ciphertext_does_not_decrypt_in_another_context(
    plaintext: bytes, context: bytes, other: bytes
) -> None:
    dek = Dek.generate()
    encrypted = dek.encrypt(plaintext, context)
    if other == context:
        assert dek.decrypt(encrypted, other) == plaintext
    else:
        with pytest.raises(RejectedBlobError, match="additional data"):
            dek.decrypt(encrypted, other)


@pytest.mark.parametrize("part", [2, 3, 4], ids=["iv", "body", "tag"])
def test_one_changed_bit_is_refused(part: int) -> None:
    dek = Dek.generate()
    with pytest.raises(RejectedBlobError, match="does not authenticate"):
        dek.decrypt(flipped(dek.encrypt(b"plaintext", b"aad"), part), b"aad")


def test_a_header_rewritten_to_another_context_does_not_authenticate() -> None:
    dek = Dek.generate()
    parts = dek.encrypt(b"plaintext", b"ours").split(b".")
    parts[0] = protected_header(dek.kid, b"theirs")
    with pytest.raises(RejectedBlobError, match="does not authenticate"):
        dek.decrypt(b".".join(parts), b"theirs")


def test_another_deks_ciphertext_is_refused_by_its_kid() -> None:
    with pytest.raises(RejectedBlobError, match="another DEK"):
        Dek.generate().decrypt(Dek.generate().encrypt(b"plaintext"))


def test_another_deks_ciphertext_under_a_stolen_kid_does_not_authenticate() -> None:
    ours = Dek.generate()
    impostor = Dek(kid=ours.kid, key=Dek.generate().key)
    with pytest.raises(RejectedBlobError, match="does not authenticate"):
        ours.decrypt(impostor.encrypt(b"plaintext"))


def test_two_encryptions_of_one_plaintext_share_no_iv_and_no_ciphertext() -> None:
    dek = Dek.generate()
    first, second = (parse(dek.encrypt(b"plaintext"), "it").sealed for _ in range(2))
    assert first.iv != second.iv
    assert first.ciphertext != second.ciphertext


def test_a_new_dek_has_32_random_bytes_and_a_kid_of_64_hex_digits() -> None:
    first, second = Dek.generate(), Dek.generate()
    assert len(first.key) == 32
    assert len(bytes.fromhex(first.kid)) == 32
    assert (first.key, first.kid) != (second.key, second.kid)


def test_a_dek_does_not_show_its_key() -> None:
    dek = Dek.from_jwk(vectors.DEK_JWK)
    assert "l50D" not in repr(dek)
    assert repr(dek.key) not in repr(dek)


# -- malformed blobs -----------------------------------------------------------------------


def test_the_sound_blob_of_these_tests_parses() -> None:
    jwe = parse(blob(), "it")
    assert (jwe.kid, jwe.context, jwe.sealed) == ("k", b"", SEALED)


@pytest.mark.parametrize(
    ("malformed", "reason"),
    [
        (b"", "not a compact JWE"),
        (b".", "not a compact JWE"),
        (b"....", "not a JSON object"),
        (b"....." + blob(), "not a compact JWE"),
        (blob().rsplit(b".", 1)[0], "not a compact JWE"),
        (blob() + b".", "not a compact JWE"),
        (base64.b64encode(blob()), "not a compact JWE"),
        (replaced(1, b"AAAA"), "empty encrypted key"),
        (replaced(0, b"e30="), "not base64url"),
        (replaced(0, b"e3+/"), "not base64url"),
        (replaced(0, b"e"), "not base64url"),
        (replaced(0, b"e30\n"), "not base64url"),
        (replaced(0, b""), "not a JSON object"),
        (replaced(2, b"AA=="), "IV of it is not base64url"),
        (replaced(3, b"\xff"), "body of it is not base64url"),
        (replaced(4, b"A A"), "tag of it is not base64url"),
        (blob() + b"\n", "tag of it is not base64url"),
        (blob(raw_header=b"\xff\xfe"), "not a JSON object"),
        (blob(raw_header=b"[]"), "not a JSON object"),
        (blob(raw_header=b'"text"'), "not a JSON object"),
        (blob(raw_header=b"null"), "not a JSON object"),
        (blob(raw_header=b"{"), "not a JSON object"),
        (blob(raw_header=b"[" * 40_000), "not a JSON object"),
        (blob(raw_header=b'{"kid":' + b"9" * 5000 + b"}"), "not a JSON object"),
        (blob(header=without("alg")), "alg dir, enc A256GCM"),
        (blob(header=without("enc")), "alg dir, enc A256GCM"),
        (blob(header=SOUND_HEADER | {"alg": "A256KW"}), "alg dir, enc A256GCM"),
        (blob(header=SOUND_HEADER | {"alg": "none"}), "alg dir, enc A256GCM"),
        (blob(header=SOUND_HEADER | {"enc": "A128GCM"}), "alg dir, enc A256GCM"),
        (blob(header=SOUND_HEADER | {"enc": ["A256GCM"]}), "alg dir, enc A256GCM"),
        (blob(header=without("kid")), "no usable kid"),
        (blob(header=SOUND_HEADER | {"kid": 7}), "no usable kid"),
        (blob(header=SOUND_HEADER | {"kid": None}), "no usable kid"),
        (blob(header=SOUND_HEADER | {"_thales_aad": 7}), "no usable aad"),
        (blob(header=SOUND_HEADER | {"_thales_aad": "%%"}), "aad of it is not base64url"),
        (blob(header=SOUND_HEADER | {"_thales_aad": "é"}), "no usable aad"),
        (blob(header=SOUND_HEADER | {"crit": ["exp"]}), "extension that is not supported"),
        (blob(header=SOUND_HEADER | {"crit": []}), "extension that is not supported"),
        (blob(header=SOUND_HEADER | {"zip": "DEF"}), "extension that is not supported"),
        (blob(sealed=Sealed(b"", b"body", b"t" * 16)), "wrong length"),
        (blob(sealed=Sealed(b"i" * 11, b"body", b"t" * 16)), "wrong length"),
        (blob(sealed=Sealed(b"i" * 13, b"body", b"t" * 16)), "wrong length"),
        (blob(sealed=Sealed(b"i" * 12, b"body", b"")), "wrong length"),
        (blob(sealed=Sealed(b"i" * 12, b"body", b"t" * 12)), "wrong length"),
        (blob(sealed=Sealed(b"i" * 12, b"body", b"t" * 17)), "wrong length"),
        (blob(sealed=Sealed(b"i" * 12, b"b" * (1 << 20), b"t" * 16)), "more than 1048576"),
        (blob(header=SOUND_HEADER | {"pad": "p" * 50_000}), "header of it is longer"),
    ],
)
def test_a_malformed_blob_is_refused_with_its_reason(malformed: bytes, reason: str) -> None:
    with pytest.raises(RejectedBlobError, match=reason):
        parse(malformed, "it")


def test_a_context_that_is_no_text_is_refused() -> None:
    header = b'{"alg":"dir","kid":"k","_thales_aad":"\\ud800","enc":"A256GCM"}'
    with pytest.raises(RejectedBlobError):
        parse(blob(raw_header=header), "it")


def test_a_kid_that_is_no_text_is_refused() -> None:
    header = b'{"alg":"dir","kid":"\\ud800","enc":"A256GCM"}'
    with pytest.raises(RejectedBlobError):
        parse(blob(raw_header=header), "it")


def test_a_refusal_shows_nothing_of_the_blob() -> None:
    marked = blob(header=SOUND_HEADER | {"enc": "CANARY"}, sealed=SEALED)
    with pytest.raises(RejectedBlobError) as caught:
        parse(marked, "it")
    assert "CANARY" not in f"{caught.value} {caught.value.hint}"


# -- malformed DEKs ------------------------------------------------------------------------

JWK = json.loads(vectors.DEK_JWK)


@pytest.mark.parametrize(
    ("jwk", "reason"),
    [
        (b"", "not a JSON object"),
        (b"[]", "not a JSON object"),
        (json.dumps(JWK | {"kty": "RSA"}).encode(), "not an A256GCM key"),
        (json.dumps(JWK | {"alg": "A128GCM"}).encode(), "not an A256GCM key"),
        (json.dumps(JWK | {"kid": "NOT-HEX"}).encode(), "no usable kid"),
        (json.dumps(JWK | {"kid": ""}).encode(), "no usable kid"),
        (json.dumps(JWK | {"kid": "a" * 129}).encode(), "no usable kid"),
        (json.dumps(JWK | {"kid": 1}).encode(), "no usable kid"),
        (json.dumps(JWK | {"k": None}).encode(), "no usable key"),
        (json.dumps(JWK | {"k": "+/+/"}).encode(), "not base64url"),
        (json.dumps(JWK | {"k": "é"}).encode(), "no usable key"),
        (json.dumps(JWK | {"k": "AAAA"}).encode(), "3 bytes instead of 32"),
        (json.dumps(JWK | {"k": "A" * 44}).encode(), "33 bytes instead of 32"),
        (vectors.DEK_JWK[:-1], "not a JSON object"),
    ],
)
def test_a_malformed_dek_is_refused_with_its_reason(jwk: bytes, reason: str) -> None:
    with pytest.raises(RejectedBlobError, match=reason):
        Dek.from_jwk(jwk)


def test_a_dek_whose_key_is_no_text_is_refused() -> None:
    with pytest.raises(RejectedBlobError):
        Dek.from_jwk(vectors.DEK_JWK.replace(b"l50D", b"\\ud800"))


# -- fuzzing -------------------------------------------------------------------------------

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
_header = st.fixed_dictionaries(
    {},
    optional={
        "alg": st.just("dir") | _json,
        "enc": st.just("A256GCM") | _json,
        "kid": st.just("k") | _json,
        "_thales_aad": st.just("QQ") | _json,
    },
)
_part = st.binary(max_size=20) | st.binary(max_size=20).map(encoded)
_nearly_a_blob = st.builds(
    lambda header, iv, body, tag: b".".join(
        (encoded(json.dumps(header).encode()), b"", iv, body, tag)
    ),
    _header,
    st.just(encoded(b"i" * 12)) | _part,
    _part,
    st.just(encoded(b"t" * 16)) | _part,
)


def _only_refusals(call: Callable[[], object]) -> None:
    try:
        call()
    except RejectedBlobError as error:
        assert str(error)  # noqa: PT017 - any other exception is the failure looked for


@given(st.binary(max_size=200) | _nearly_a_blob)
def test_parsing_any_bytes_answers_or_refuses(data: bytes) -> None:
    def use() -> None:
        jwe = parse(data, "it")
        jwe.kid.encode()

    _only_refusals(use)


@given(st.binary(max_size=200) | _json.map(lambda value: json.dumps(value).encode()))
def test_reading_any_bytes_as_a_dek_answers_or_refuses(data: bytes) -> None:
    _only_refusals(lambda: Dek.from_jwk(data).to_jwk())


@given(
    st.fixed_dictionaries(
        {"kty": st.just("oct"), "alg": st.just("A256GCM"), "kid": st.just("ab") | _json, "k": _json}
    )
)
def test_reading_any_near_jwk_as_a_dek_answers_or_refuses(members: dict[str, object]) -> None:
    _only_refusals(lambda: Dek.from_jwk(json.dumps(members).encode()))


@given(data=st.data())
def test_no_changed_byte_of_a_blob_gives_another_plaintext(data: st.DataObject) -> None:
    dek = Dek.from_jwk(vectors.DEK_JWK)
    original = REFERENCE.ciphertexts[0]
    changed = bytearray(original.blob)
    position = data.draw(st.integers(0, len(changed) - 1))
    changed[position] = data.draw(st.integers(0, 255))
    try:
        assert dek.decrypt(bytes(changed), original.aad) == original.plaintext
    except RejectedBlobError:
        assert bytes(changed) != original.blob
