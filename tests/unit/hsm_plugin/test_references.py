"""Tokens and keys are named by label, id or URI; what could mean another one is refused."""

import pytest

from hsm_plugin import token_reference
from hsm_plugin.errors import BadRequestError
from hsm_plugin.key_reference import KeyUse, key_id

ONE = {"label": "mesh", "serial": "1", "manufacturer": "m", "model": "v2", "slot": 7}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("mesh", True),
        ("Mesh", False),
        ("pkcs11:token=mesh", True),
        ("pkcs11:token=mesh;serial=1;manufacturer=m;model=v2;slot-id=7", True),
        ("pkcs11:serial=1", True),
        ("pkcs11:serial=2", False),
        ("pkcs11:token=mesh;serial=2", False),
        ("pkcs11:token=mesh;slot-id=8", False),
        ("pkcs11:token=mesh;model=v3", False),
        ("pkcs11:token=mesh;manufacturer=n", False),
        ("pkcs11:token=other;serial=1", False),
    ],
)
def test_a_token_is_meant_when_every_attribute_is_its_own(text: str, *, found: bool) -> None:
    assert token_reference.parse(text).matches(**ONE) is found  # type: ignore[arg-type] # mixed


def test_several_tokens_keep_their_order() -> None:
    references = token_reference.parse_list("one, pkcs11:token=two%2C2;serial=2 ,pkcs11:serial=3")
    assert [reference.name for reference in references] == ["one", "two,2", "3"]


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", "label is empty"),
        ("a,,b", "label is empty"),
        ("a,", "label is empty"),
        ("a,a", "named twice"),
        ("a,pkcs11:token=a", "named twice"),
        (",".join("abcdefghi"), "9 tokens are named"),
        ("pkcs11:slot-id=1", "names no token"),
        ("pkcs11:model=v2", "names no token"),
        ("pkcs11:token=", "names no token"),
        ("pkcs11:token=a;object=k", "names an object"),
        ("pkcs11:token=a?pin-value=1", "pin-value"),
    ],
)
def test_a_list_that_is_not_clear_is_refused(text: str, cause: str) -> None:
    with pytest.raises(BadRequestError, match=cause):
        token_reference.parse_list(text)


@pytest.mark.parametrize(
    ("text", "use", "meant"),
    [
        ("7651a4ea", KeyUse.KEK, b"7651a4ea"),
        ("pkcs11:id=%41b", KeyUse.KEK, b"Ab"),
        ("pkcs11:object=k8s-kms-plugin-kek;id=k;type=secret-key", KeyUse.KEK, b"k"),
        ("pkcs11:object=k8s-dek;id=k", KeyUse.KEK, b"k"),
        ("pkcs11:id=k;object=istio-hsm-signing-key;type=private", KeyUse.SIGNING, b"k"),
        ("pkcs11:id=%ff;type=public", KeyUse.SIGNING, b"\xff"),
        ("\udcff", KeyUse.KEK, b"\xff"),
    ],
)
def test_a_key_is_named_by_id_or_uri(text: str, use: KeyUse, meant: bytes) -> None:
    assert key_id(text, use) == meant


@pytest.mark.parametrize(
    ("text", "use", "cause"),
    [
        ("pkcs11:object=k8s-kms-plugin-kek", KeyUse.KEK, "has no id"),
        ("pkcs11:id=k;token=mesh", KeyUse.KEK, "names a token"),
        ("pkcs11:id=k;type=private", KeyUse.KEK, "object of type private"),
        ("pkcs11:id=k;type=secret-key", KeyUse.SIGNING, "object of type secret-key"),
        ("pkcs11:id=k;object=other", KeyUse.SIGNING, "another label"),
        ("pkcs11:id=k;object=istio-hsm-signing-key", KeyUse.KEK, "another label"),
        ("pkcs11:id=k?pin-value=1", KeyUse.KEK, "pin-value"),
    ],
)
def test_a_uri_that_means_another_object_is_refused(text: str, use: KeyUse, cause: str) -> None:
    with pytest.raises(BadRequestError, match=cause):
        key_id(text, use)
