"""Who is calling: a client certificate or a signed token -> caller."""

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from functools import lru_cache
from typing import Protocol

import jwt
from cryptography import x509

from istiod_ca_bridge.der import MALFORMED
from istiod_ca_bridge.errors import ConfigError, UnauthenticatedError
from istiod_ca_bridge.identity import WorkloadIdentity, parse_spiffe_id, workload_identity
from istiod_ca_bridge.verified_tokens import VerifiedTokens

MAX_TOKEN_BYTES = 16 << 10
MAX_KEYS = 32
TOKEN_LEEWAY = timedelta(seconds=30)
_LEEWAY = TOKEN_LEEWAY.total_seconds()
TOKEN_ALGORITHMS = ("RS256", "RS384", "RS512", "ES256", "ES384")
_MAX_NAME = 253
_REMEMBERED_CERTIFICATES = 1024
_KEY_TYPES = ("RSA", "EC")


class Method(Enum):
    """What the caller proved itself with."""

    CERTIFICATE = "certificate"
    TOKEN = "token"  # noqa: S105 - a method, no token


@dataclass(frozen=True, slots=True)
class Caller:
    """A workload that proved who it is."""

    identity: WorkloadIdentity
    method: Method
    pod: str = ""
    pod_uid: str = ""
    agent: str = ""
    """The node agent that asks in the workload's stead; pod and token are its own then."""

    not_after: datetime | None = None
    """When the certificate that it came with expires."""


class TokenAuthenticator(Protocol):
    """Turns a bearer token into the caller it was issued to."""

    async def authenticate(self, token: str) -> Caller:
        """Return the caller; UnauthenticatedError says why not, without the token."""
        ...


@dataclass(frozen=True, slots=True)
class TrustDomain:
    """The trust domain whose identities are given, and other names that it goes or went by."""

    name: str
    aliases: frozenset[str] = frozenset()

    def own(self, identity: WorkloadIdentity) -> WorkloadIdentity:
        """Return the identity under the domain's own name; UnauthenticatedError if it is of none.

        So a mesh that is renamed renews certificates of the old name into the new one.
        """
        if identity.trust_domain == self.name:
            return identity
        if identity.trust_domain not in self.aliases:
            raise UnauthenticatedError("the client certificate is of another trust domain")
        return workload_identity(self.name, identity.namespace, identity.service_account)


def caller_of_certificate(
    der: bytes, trust_domain: TrustDomain, now: datetime, revoked: Container[int] = frozenset()
) -> Caller:
    """Return the caller of a client certificate whose chain TLS verified already.

    The certificate must be valid now, no CA, and have exactly one URI: the SPIFFE identity of a
    workload in our trust domain or one of its aliases. `revoked` holds serials.
    """
    certificate = _workload_certificate(der)
    if certificate.serial in revoked:
        raise UnauthenticatedError("the client certificate is revoked")
    if not certificate.not_before <= now < certificate.not_after:
        raise UnauthenticatedError("the client certificate is expired or not valid yet")
    return Caller(
        trust_domain.own(certificate.identity),
        Method.CERTIFICATE,
        not_after=certificate.not_after,
    )


@dataclass(frozen=True, slots=True)
class _WorkloadCertificate:
    serial: int
    not_before: datetime
    not_after: datetime
    identity: WorkloadIdentity


@lru_cache(_REMEMBERED_CERTIFICATES)
def _workload_certificate(der: bytes) -> _WorkloadCertificate:
    """Return what never changes about a certificate: a connection shows the same each time."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        extensions = certificate.extensions
    except MALFORMED:
        raise UnauthenticatedError("the client certificate is malformed") from None
    uris: list[str] = []
    for extension in extensions:
        if isinstance(extension.value, x509.BasicConstraints) and extension.value.ca:
            raise UnauthenticatedError("the client certificate is a CA's")
        if isinstance(extension.value, x509.SubjectAlternativeName):
            uris = extension.value.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise UnauthenticatedError(f"the client certificate has {len(uris)} URIs instead of one")
    return _WorkloadCertificate(
        certificate.serial_number,
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
        parse_spiffe_id(uris[0]),
    )


def key_set(document: object) -> dict[str, jwt.PyJWK]:
    """Return the public keys of a JWKS (RFC 7517, section 5) by id.

    Symmetric keys and keys of unknown kinds are left out; ConfigError when nothing is left.
    """
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list) or len(entries) > MAX_KEYS:
        raise ConfigError(f"the JWKS is not a document with 1 to {MAX_KEYS} keys")
    keys: dict[str, jwt.PyJWK] = {}
    for entry in entries:
        if not isinstance(entry, dict) or entry.get("kty") not in _KEY_TYPES or "d" in entry:
            continue
        try:
            key = jwt.PyJWK(entry)
        except (jwt.PyJWTError, *MALFORMED):
            continue
        if key.algorithm_name in TOKEN_ALGORITHMS and isinstance(key.key_id, str | None):
            keys[key.key_id or ""] = key
    if not keys:
        raise ConfigError("the JWKS holds no usable public key", hint="RSA, P-256 or P-384")
    return keys


class SignedTokenAuthenticator:
    """Verifies projected ServiceAccount tokens by their issuer's public keys."""

    def __init__(
        self,
        keys: Callable[[], Mapping[str, jwt.PyJWK]],
        issuer: str,
        audiences: tuple[str, ...],
        trust_domain: str,
        clock: Callable[[], datetime],
    ) -> None:
        self._keys = keys
        self._issuer = issuer
        self._audiences = audiences
        self._trust_domain = trust_domain
        self._clock = clock
        self._known: VerifiedTokens[_Known] = VerifiedTokens()

    async def authenticate(self, token: str) -> Caller:
        """Return the ServiceAccount's workload; UnauthenticatedError otherwise."""
        if not token or len(token) > MAX_TOKEN_BYTES:
            raise UnauthenticatedError(f"the token is empty or over {MAX_TOKEN_BYTES} bytes")
        now = self._clock().timestamp()
        digest = self._known.digest(token)
        known = self._known.find(digest, self._keys(), now - _LEEWAY)
        if known is not None:
            known.life.check(now)
            return known.caller
        key, claims = self._verified(token)
        life = _life(claims)
        life.check(now)
        caller = _caller(claims, self._trust_domain)
        self._known.note(digest, key, life.expires, _Known(life, caller))
        return caller

    def _verified(self, token: str) -> tuple[jwt.PyJWK, Mapping[str, object]]:
        try:
            key_id = jwt.get_unverified_header(token).get("kid", "")
            key = self._keys().get(key_id) if isinstance(key_id, str) else None
            if key is None:
                raise UnauthenticatedError("the token is signed by a key that is not trusted")
            claims: Mapping[str, object] = jwt.decode(
                token,
                key,
                algorithms=[key.algorithm_name],
                audience=self._audiences,
                issuer=self._issuer,
                options={
                    "require": ["exp", "iss", "aud", "sub"],
                    # Checked by _Life, with the clock that is passed in.
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                },
            )
        except jwt.PyJWTError as error:
            raise UnauthenticatedError(
                f"the token is refused: {_REASONS.get(type(error), 'it is malformed')}"
            ) from None
        return key, claims


@dataclass(frozen=True, slots=True)
class _Life:
    """From when to when a token holds, in seconds since 1970."""

    starts: float
    expires: float

    def check(self, now: float) -> None:
        """Return while it holds; UnauthenticatedError otherwise."""
        if not now - _LEEWAY < self.expires:
            raise UnauthenticatedError("the token is refused: it is expired")
        if not now + _LEEWAY >= self.starts:
            raise UnauthenticatedError("the token is refused: it is not valid yet")


@dataclass(frozen=True, slots=True)
class _Known:
    """What a verified token says."""

    life: _Life
    caller: Caller


def _life(claims: Mapping[str, object]) -> _Life:
    expires = claims.get("exp")
    starts = claims.get("nbf", claims.get("iat", 0))
    if not isinstance(expires, int | float) or not isinstance(starts, int | float):
        raise UnauthenticatedError("the token is refused: it is malformed")
    return _Life(starts, expires)


_REASONS: dict[type[Exception], str] = {
    jwt.InvalidSignatureError: "its signature is wrong",
    jwt.InvalidAudienceError: "its audience is not ours",
    jwt.InvalidIssuerError: "its issuer is not trusted",
    jwt.InvalidAlgorithmError: "its algorithm is not the key's",
    jwt.MissingRequiredClaimError: "it lacks a claim",
}


def _caller(claims: Mapping[str, object], trust_domain: str) -> Caller:
    """Return the caller that the `kubernetes.io` claims and the subject agree on."""
    kubernetes = claims.get("kubernetes.io")
    namespace = _text(kubernetes, "namespace")
    account = _text(_child(kubernetes, "serviceaccount"), "name")
    if claims.get("sub") != f"system:serviceaccount:{namespace}:{account}":
        raise UnauthenticatedError("the token is refused: it is not of a ServiceAccount")
    identity = workload_identity(trust_domain, namespace, account)
    pod = _child(kubernetes, "pod")
    return Caller(
        identity,
        Method.TOKEN,
        pod=_text(pod, "name")[:_MAX_NAME],
        pod_uid=_text(pod, "uid")[:_MAX_NAME],
    )


def _child(claims: object, key: str) -> object:
    return claims.get(key) if isinstance(claims, dict) else None


def _text(claims: object, key: str) -> str:
    value = _child(claims, key)
    return value if isinstance(value, str) else ""
