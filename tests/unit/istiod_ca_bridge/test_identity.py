import pytest
from hypothesis import given
from hypothesis import strategies as st

from istiod_ca_bridge.errors import InvalidIdentityError
from istiod_ca_bridge.identity import check_trust_domain, parse_spiffe_id, workload_identity


def test_an_identity_is_formed_as_istio_forms_it() -> None:
    identity = workload_identity("cluster.local", "shop", "cart")

    assert str(identity) == "spiffe://cluster.local/ns/shop/sa/cart"
    assert parse_spiffe_id(str(identity)) == identity


@pytest.mark.parametrize(
    ("namespace", "account"),
    [
        ("", "cart"),
        ("shop", ""),
        ("shop/sa/admin", "cart"),
        ("Shop", "cart"),
        ("shop", "cart/../admin"),
        ("shop", "cart\n"),
        ("-shop", "cart"),
        ("s" * 64, "cart"),
        ("shop", "c" * 254),
        ("shop.x", "cart"),
    ],
)
def test_names_that_kubernetes_would_not_have_are_refused(namespace: str, account: str) -> None:
    with pytest.raises(InvalidIdentityError):
        workload_identity("cluster.local", namespace, account)


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "https://cluster.local/ns/shop/sa/cart",
        "spiffe://cluster.local/ns/shop/sa/cart/extra",
        "spiffe://cluster.local/ns/shop",
        "spiffe://Cluster.Local/ns/shop/sa/cart",
        "spiffe://user@cluster.local/ns/shop/sa/cart",
        "spiffe://cluster.local:80/ns/shop/sa/cart",
        "spiffe://cluster.local/ns/shop/sa/cart?x=1",
        "spiffe://cluster.local/ns/sh%6fp/sa/cart",
        "spiffe://cluster.local/ns/shop/sa/cart\n",
        "spiffe://" + "a" * 3000 + "/ns/shop/sa/cart",
    ],
)
def test_a_uri_that_is_not_exactly_a_workload_s_is_refused(uri: str) -> None:
    with pytest.raises(InvalidIdentityError):
        parse_spiffe_id(uri)


@given(st.text(max_size=300))
def test_any_text_is_parsed_to_itself_or_refused(text: str) -> None:
    try:
        identity = parse_spiffe_id(text)
    except InvalidIdentityError:
        return
    assert str(identity) == text


@pytest.mark.parametrize("name", ["", "Cluster.local", "a b", "a/b", "a" * 256])
def test_a_trust_domain_outside_the_alphabet_is_refused(name: str) -> None:
    with pytest.raises(InvalidIdentityError):
        check_trust_domain(name)
