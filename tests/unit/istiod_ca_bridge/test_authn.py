import base64
import json
from datetime import timedelta
from typing import Any

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from istiod_ca_bridge.authn import (
    MAX_TOKEN_BYTES,
    TOKEN_LEEWAY,
    Caller,
    Method,
    SignedTokenAuthenticator,
    TrustDomain,
    caller_of_certificate,
    key_set,
)
from istiod_ca_bridge.errors import ConfigError, UnauthenticatedError
from istiod_ca_bridge.verified_tokens import VerifiedTokens
from tests.support import pki
from tests.unit.istiod_ca_bridge.doubles import NOW

ISSUER = "https://issuer.test"
MESH = TrustDomain("cluster.local")
RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
SECRET = "s" * 40
JWKS: dict[str, Any] = {
    "keys": [
        json.loads(RSAAlgorithm.to_jwk(RSA.public_key())) | {"kid": "r", "alg": "RS256"},
        json.loads(ECAlgorithm.to_jwk(EC.public_key())) | {"kid": "e"},
        {"kty": "oct", "kid": "o", "k": base64.urlsafe_b64encode(SECRET.encode()).decode()},
    ]
}
KEYS = key_set(JWKS)
CLAIMS: dict[str, Any] = {
    "iss": ISSUER,
    "aud": ["istio-ca"],
    "sub": "system:serviceaccount:shop:cart",
    "exp": int(NOW.timestamp()) + 600,
    "iat": int(NOW.timestamp()),
    "kubernetes.io": {
        "namespace": "shop",
        "serviceaccount": {"name": "cart"},
        "pod": {"name": "cart-0"},
    },
}
AUTHENTICATOR = SignedTokenAuthenticator(
    lambda: KEYS, ISSUER, ("istio-ca", "other"), "cluster.local", lambda: NOW
)


def token(key: Any = RSA, algorithm: str = "RS256", kid: str = "r", **changes: Any) -> str:
    claims = {name: value for name, value in (CLAIMS | changes).items() if value is not None}
    return jwt.encode(claims, key, algorithm=algorithm, headers={"kid": kid})


async def refusal(text: str) -> str:
    with pytest.raises(UnauthenticatedError) as caught:
        await AUTHENTICATOR.authenticate(text)
    assert len(text) < 20 or text[:20] not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("key", "algorithm", "kid"), [(RSA, "RS256", "r"), (EC, "ES256", "e")])
async def test_a_service_account_s_token_is_its_workload(
    key: Any, algorithm: str, kid: str
) -> None:
    caller = await AUTHENTICATOR.authenticate(token(key, algorithm, kid))

    assert str(caller.identity) == "spiffe://cluster.local/ns/shop/sa/cart"
    assert (caller.method, caller.pod) == (Method.TOKEN, "cart-0")


async def test_any_of_the_audiences_will_do() -> None:
    await AUTHENTICATOR.authenticate(token(aud="other"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"aud": ["https://kubernetes.default.svc"]}, "audience"),
        ({"aud": None}, "claim"),
        ({"iss": "https://else.test"}, "issuer"),
        ({"exp": int(NOW.timestamp()) - 31}, "expired"),
        ({"exp": None}, "claim"),
        ({"exp": "soon"}, "malformed"),
        ({"nbf": int(NOW.timestamp()) + 31}, "not valid yet"),
        ({"sub": "system:serviceaccount:shop:admin"}, "ServiceAccount"),
        ({"sub": "alice"}, "ServiceAccount"),
        ({"sub": None}, "claim"),
        ({"kubernetes.io": None}, "ServiceAccount"),
        ({"kubernetes.io": "shop"}, "ServiceAccount"),
        ({"kubernetes.io": {"namespace": "shop", "serviceaccount": ["cart"]}}, "ServiceAccount"),
        (
            {
                "sub": "system:serviceaccount:a/b:cart",
                "kubernetes.io": {"namespace": "a/b", "serviceaccount": {"name": "cart"}},
            },
            "namespace",
        ),
    ],
)
async def test_a_token_that_says_something_else_is_refused(
    changes: dict[str, Any], reason: str
) -> None:
    assert reason in await refusal(token(**changes))


async def test_a_token_signed_by_another_key_of_the_same_id_is_refused() -> None:
    assert "signature" in await refusal(token(rsa.generate_private_key(65537, 2048)))


async def test_a_token_with_one_claim_changed_after_signing_is_refused() -> None:
    header, _, signature = token().split(".")
    forged = base64.urlsafe_b64encode(json.dumps(CLAIMS | {"x": 1}).encode()).rstrip(b"=").decode()

    assert "signature" in await refusal(f"{header}.{forged}.{signature}")


async def test_an_unknown_key_id_is_refused() -> None:
    assert "not trusted" in await refusal(token(kid="other"))


async def test_no_algorithm_and_symmetric_algorithms_are_refused() -> None:
    public = RSA.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    head = base64.urlsafe_b64encode(b'{"alg":"none","kid":"r"}').rstrip(b"=").decode()
    body = base64.urlsafe_b64encode(json.dumps(CLAIMS).encode()).rstrip(b"=").decode()

    await refusal(f"{head}.{body}.")
    await refusal(token(SECRET, "HS256", "o"))
    await refusal(token(public.hex(), "HS256", "r"))
    await refusal(token(RSA, "PS256", "r"))


@pytest.mark.parametrize(
    "text", ["", "a", "a.b.c", "....", "\u00e9.a.b", "x" * (MAX_TOKEN_BYTES + 1)]
)
async def test_garbage_is_refused(text: str) -> None:
    await refusal(text)


class Signed:
    """An authenticator whose keys and clock change."""

    def __init__(self) -> None:
        self.keys = dict(KEYS)
        self.now = NOW
        self.tested = SignedTokenAuthenticator(
            lambda: self.keys, ISSUER, ("istio-ca",), "cluster.local", lambda: self.now
        )


async def test_a_token_that_comes_again_is_the_same_caller_until_it_expires() -> None:
    signed, text = Signed(), token()

    first = await signed.tested.authenticate(text)
    assert await signed.tested.authenticate(text) is first
    signed.now += timedelta(seconds=600) + TOKEN_LEEWAY

    with pytest.raises(UnauthenticatedError, match="expired"):
        await signed.tested.authenticate(text)


async def test_a_token_that_was_good_is_refused_when_the_clock_goes_back_before_its_start() -> None:
    signed, text = Signed(), token()
    await signed.tested.authenticate(text)
    signed.now -= timedelta(hours=1)

    with pytest.raises(UnauthenticatedError, match="not valid yet"):
        await signed.tested.authenticate(text)


@pytest.mark.parametrize("replaced", [{}, {"r": KEYS["e"]}])
async def test_a_token_that_was_good_is_refused_once_its_key_is_not_trusted_any_more(
    replaced: dict[str, jwt.PyJWK],
) -> None:
    signed, text = Signed(), token()
    await signed.tested.authenticate(text)
    signed.keys = replaced

    with pytest.raises(UnauthenticatedError):
        await signed.tested.authenticate(text)


async def test_a_token_like_one_that_was_good_is_refused_for_its_signature() -> None:
    signed, text = Signed(), token()
    await signed.tested.authenticate(text)
    head, _, signature = text.rpartition(".")
    changed = f"{head}.{signature[::-1]}"

    for _ in range(2):  # a refusal is not remembered as a yes
        with pytest.raises(UnauthenticatedError):
            await signed.tested.authenticate(changed)


def test_only_so_many_tokens_are_remembered_and_none_as_it_is() -> None:
    known: VerifiedTokens[int] = VerifiedTokens(capacity=2)
    texts = [token(jti=str(number)) for number in range(3)]
    for number, text in enumerate(texts):
        known.note(known.digest(text), KEYS["r"], 100.0, number)

    assert len(known) == 2
    assert [known.find(known.digest(text), KEYS, 1.0) for text in texts] == [None, 1, 2]
    assert not any(text.encode() in digest for text in texts for digest in known._remembered)


def test_a_key_set_leaves_out_secret_and_private_keys() -> None:
    private = json.loads(RSAAlgorithm.to_jwk(RSA)) | {"kid": "p"}

    assert set(key_set({"keys": [*JWKS["keys"], private]})) == {"r", "e"}


@pytest.mark.parametrize(
    "document",
    [None, [], {}, {"keys": {}}, {"keys": []}, {"keys": [{"kty": "RSA"}]}, {"keys": [{}] * 40}],
)
def test_a_key_set_without_a_usable_key_is_refused(document: object) -> None:
    with pytest.raises(ConfigError):
        key_set(document)


CA = pki.root()
SPIFFE = "spiffe://cluster.local/ns/shop/sa/cart"


def client_certificate(*uris: str, **changes: Any) -> bytes:
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
    extensions = ((names, True),) if uris else ()
    return pki.issue("w", CA, extensions=extensions, **changes).der


def test_a_client_certificate_is_its_workload() -> None:
    caller = caller_of_certificate(client_certificate(SPIFFE), MESH, NOW)

    assert isinstance(caller, Caller)
    assert (str(caller.identity), caller.method) == (SPIFFE, Method.CERTIFICATE)


@pytest.mark.parametrize(
    "der",
    [
        b"",
        b"garbage",
        client_certificate(),
        client_certificate(SPIFFE, "spiffe://cluster.local/ns/shop/sa/admin"),
        client_certificate("spiffe://else.test/ns/shop/sa/cart"),
        client_certificate("https://cluster.local/"),
        client_certificate(SPIFFE, is_ca=True),
        client_certificate(SPIFFE, valid_until=NOW - timedelta(minutes=1)),
        client_certificate(SPIFFE, valid_from=NOW + timedelta(minutes=1)),
    ],
)
def test_a_certificate_that_is_no_workload_s_is_refused(der: bytes) -> None:
    with pytest.raises(UnauthenticatedError):
        caller_of_certificate(der, MESH, NOW)


def test_a_certificate_that_was_taken_is_refused_once_it_is_revoked_or_out_of_its_time() -> None:
    der = client_certificate("spiffe://cluster.local/ns/shop/sa/cart")
    certificate = x509.load_der_x509_certificate(der)
    caller_of_certificate(der, MESH, NOW)

    with pytest.raises(UnauthenticatedError, match="revoked"):
        caller_of_certificate(der, MESH, NOW, {certificate.serial_number})
    for moment in (
        certificate.not_valid_before_utc - timedelta(seconds=1),
        certificate.not_valid_after_utc,
    ):
        with pytest.raises(UnauthenticatedError, match="expired"):
            caller_of_certificate(der, MESH, moment)
    with pytest.raises(UnauthenticatedError, match="another trust domain"):
        caller_of_certificate(der, TrustDomain("other"), NOW)


def test_a_certificate_of_an_alias_is_taken_and_gets_the_trust_domain_s_own_name() -> None:
    renamed = TrustDomain("new.test", frozenset({"cluster.local"}))

    caller = caller_of_certificate(client_certificate(SPIFFE), renamed, NOW)

    assert str(caller.identity) == "spiffe://new.test/ns/shop/sa/cart"
    with pytest.raises(UnauthenticatedError, match="another trust domain"):
        caller_of_certificate(client_certificate(SPIFFE), TrustDomain("new.test"), NOW)
