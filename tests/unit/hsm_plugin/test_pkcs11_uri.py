"""A PKCS#11 URI means what it says: it is understood whole, or refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsm_plugin import pkcs11_uri
from hsm_plugin.errors import BadRequestError
from hsm_plugin.pkcs11_uri import MAX_URI_BYTES, ObjectType, Pkcs11Uri, parse

TEXTS = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
URIS = st.builds(
    Pkcs11Uri,
    token=TEXTS,
    serial=TEXTS,
    manufacturer=TEXTS,
    model=TEXTS,
    slot_id=st.none() | st.integers(0, (1 << 64) - 1),
    object=TEXTS,
    id=st.none() | st.binary(max_size=64),
    type=st.none() | st.sampled_from(ObjectType),
)


@given(URIS)
def test_what_is_written_is_read_back(uri: Pkcs11Uri) -> None:
    assert parse(str(uri)) == uri


@given(st.text(max_size=200))
def test_any_text_is_a_uri_or_refused_and_never_something_else(text: str) -> None:
    try:
        uri = parse("pkcs11:" + text)
    except BadRequestError:
        return
    assert parse(str(uri)) == uri


def test_what_other_programs_print_is_understood() -> None:
    assert parse(
        "pkcs11:model=SoftHSM%20v2;manufacturer=SoftHSM%20project;serial=9b1c;token=mesh%2C%20one;"
        "id=%00%ff;object=a%3Bb;type=private"
    ) == Pkcs11Uri(
        token="mesh, one",
        serial="9b1c",
        manufacturer="SoftHSM project",
        model="SoftHSM v2",
        object="a;b",
        id=b"\x00\xff",
        type=ObjectType.PRIVATE,
    )


def test_a_scheme_has_no_case_and_an_attribute_has() -> None:
    assert parse("PKCS11:token=a") == Pkcs11Uri(token="a")
    assert pkcs11_uri.is_uri("Pkcs11:token=a")
    assert not pkcs11_uri.is_uri("pkcs11")
    with pytest.raises(BadRequestError, match="Token is not understood"):
        parse("pkcs11:Token=a")


def test_an_empty_value_is_not_an_absent_one() -> None:
    assert parse("pkcs11:token=") == Pkcs11Uri(token="")
    assert parse("pkcs11:") == Pkcs11Uri()


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("token=a", "does not begin"),
        ("pkcs11:label=a", "label is not understood"),
        ("pkcs11:slot-description=a", "slot-description is not understood"),
        ("pkcs11:x-vendor=a", "x-vendor is not understood"),
        ("pkcs11:token", "token is not understood"),
        ("pkcs11:token=a;", "is not understood"),
        ("pkcs11:;token=a", "is not understood"),
        ("pkcs11:token=a;token=a", "token is given twice"),
        ("pkcs11:token=a b", "must be written as %XX"),
        ("pkcs11:token=a/b", "must be written as %XX"),
        ("pkcs11:token=é", "must be written as %XX"),
        ("pkcs11:token=%4", "must be written as %XX"),
        ("pkcs11:token=%zz", "must be written as %XX"),
        ("pkcs11:token=%ff", "is not UTF-8"),
        ("pkcs11:slot-id=", "slot-id is not a number"),
        ("pkcs11:slot-id=-1", "slot-id is not a number"),
        ("pkcs11:slot-id=18446744073709551616", "slot-id is not a number"),
        ("pkcs11:type=key", "type is none of"),
        (f"pkcs11:token={'a' * MAX_URI_BYTES}", "longer than"),
    ],
)
def test_what_is_not_understood_whole_is_refused(text: str, cause: str) -> None:
    with pytest.raises(BadRequestError, match=cause):
        parse(text)


@pytest.mark.parametrize(
    ("query", "name", "reason"),
    [
        ("pin-value=canary", "pin-value", "would show the PIN to every process"),
        ("module-path=/x&pin-value=canary", "pin-value", "would show the PIN to every process"),
        ("pin-source=file:/canary", "pin-source", "P11_PIN_FILE"),
        ("module-path=/canary", "module-path", "P11_LIB"),
        ("x=canary", "x", "question mark"),
        ("", "no name", "question mark"),
    ],
)
def test_a_query_is_refused_with_the_reason_and_without_its_values(
    query: str, name: str, reason: str
) -> None:
    with pytest.raises(BadRequestError, match=name) as caught:
        parse(f"pkcs11:token=a?{query}")
    assert reason in caught.value.hint
    assert "canary" not in f"{caught.value} {caught.value.hint}"


def test_a_refusal_shows_no_value() -> None:
    for text in ("pkcs11:canary secret", "pkcs11:pin-value=canary", "pkcs11:token=canary secret"):
        with pytest.raises(BadRequestError) as caught:
            parse(text)
        assert "canary" not in f"{caught.value} {caught.value.hint}"
