"""The likely cause of a 403, and the command that mends it. Pure.

Vault answers every refused login alike. What tells them apart is what we hold ourselves (the
claims of our own token, read without judging its signature) and the statuses of two logins that
cannot succeed: one with an empty body, one with the real role and no real token.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum

CLOCK_TOLERANCE = timedelta(seconds=30)
"""Clocks that differ by no more are taken for equal."""

MEND_CLOCK = "correct the clock that is wrong: `chronyc tracking` on the node and on Vault's host"
_SYSTEM_PATHS = ("sys/", "auth/", "cubbyhole/", "identity/")
_SUBJECT = "system:serviceaccount:"


class Reason(Enum):
    """What is wrong, as far as it can be told from here."""

    AUTH_PATH = "auth_path"
    ROLE = "role"
    AUDIENCE = "audience"
    EXPIRED = "expired"
    CLOCK = "clock"
    BINDING_OR_REVIEW = "binding_or_review"
    APPROLE = "approle"
    TOKEN = "token"  # noqa: S105 - a word, not a password
    POLICY = "policy"
    KV_PATH = "kv_path"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A cause for people, and the command that mends it."""

    reason: Reason
    message: str
    hint: str


@dataclass(frozen=True, slots=True)
class Claims:
    """What a service account's token says of itself (RFC 7519); nothing of it is secret."""

    issuer: str
    audiences: tuple[str, ...]
    namespace: str
    service_account: str
    not_before: datetime | None
    expires: datetime | None


@dataclass(frozen=True, slots=True)
class LoginFacts:
    """What is known after a refused login; None where a probe had no answer."""

    mount: str
    role: str | None
    claims: Claims | None
    expected_audience: str | None
    mount_exists: bool | None
    role_exists: bool | None
    clock_ahead: timedelta
    now: datetime


@dataclass(frozen=True, slots=True)
class ReadFacts:
    """What is known after a refused read; None where a question had no answer."""

    kv_path: str
    read_path: str | None
    """The API path, if the mount and so the version of its KV engine are known."""
    granted: Mapping[str, frozenset[str]] | None
    """The capabilities that the token's policies grant, by path."""


def decode_claims(jwt: bytes) -> Claims | None:
    """Return the claims of a JSON Web Token, its signature unjudged; None if it is none."""
    try:
        payload = jwt.split(b".")[1]
        content = json.loads(base64.urlsafe_b64decode(payload + b"=" * (-len(payload) % 4)))
        audience = content.get("aud", [])
        subject = str(content.get("sub", "")).removeprefix(_SUBJECT)
        namespace, _, name = subject.partition(":")
        return Claims(
            issuer=str(content.get("iss", "")),
            audiences=(audience,) if isinstance(audience, str) else tuple(map(str, audience)),
            namespace=namespace,
            service_account=name,
            not_before=_instant(content.get("nbf")),
            expires=_instant(content.get("exp")),
        )
    except (
        *(ValueError, LookupError, ArithmeticError, AttributeError, TypeError, OSError),
        RecursionError,
    ):
        return None


def diagnose_login(facts: LoginFacts) -> Diagnosis:
    """Return why a login was refused, the surest finding first."""
    mount, role = facts.mount, facts.role
    if facts.mount_exists is False:
        return Diagnosis(
            Reason.AUTH_PATH,
            f"the login is refused because no auth method is mounted at {mount}",
            "find the right path with `bao auth list` and set VAULT_AUTH_PATH (and VAULT_NAMESPACE "
            f"if there is one), or mount it: `bao auth enable -path={mount} kubernetes`",
        )
    if role is None:
        return Diagnosis(
            Reason.APPROLE,
            f"the AppRole login at {mount} is refused: the secret id is used up, expired or wrong",
            f"make a new one: `bao write -f auth/{mount}/role/<role>/secret-id`",
        )
    if facts.claims is None:
        return Diagnosis(
            Reason.TOKEN,
            "the login is refused and the file in VAULT_AUTH_JWT_PATH holds no service "
            "account token",
            "mount a projected serviceAccountToken volume there",
        )
    claims = facts.claims
    return (
        _timing(facts, claims)
        or _audience(facts, claims)
        or _no_role(facts, role)
        or _binding(facts, claims, role)
    )


def diagnose_read(facts: ReadFacts) -> Diagnosis:
    """Return why a read was refused: the policy, or the path."""
    kv_path, mend = facts.kv_path, _write_policy(facts)
    path = facts.read_path or kv_path
    if facts.granted is None:
        return Diagnosis(Reason.POLICY, f"the login works, but reading {path} is refused", mend)
    readable = sorted(
        granted
        for granted, capabilities in facts.granted.items()
        if capabilities & {"read", "root", "sudo"} and not granted.startswith(_SYSTEM_PATHS)
    )
    if any(covers(granted, path) for granted in readable):
        return Diagnosis(
            Reason.UNKNOWN,
            f"reading {path} is refused although the token's policies grant it",
            "check VAULT_NAMESPACE, and whether the path is protected by more than a policy",
        )
    twins = [granted for granted in readable if covers(granted, kv_path)]
    if twins:
        return Diagnosis(
            Reason.POLICY,
            f"the policy grants {twins[0]}, but a KV version 2 mount is read at {path}",
            mend,
        )
    if readable:
        shown = ", ".join(readable[:3])
        return Diagnosis(
            Reason.KV_PATH,
            f"the token may read {shown}, but VAULT_KV_PATH leads to {path}",
            f"set VAULT_KV_PATH to the secret's path; if {kv_path} is right, grant it: {mend}",
        )
    return Diagnosis(
        Reason.POLICY,
        f"the login works, but none of the token's policies grants reading {path}",
        mend,
    )


def covers(granted: str, path: str) -> bool:
    """Return whether a policy's path covers this one: `+` is one segment, a last `*` the rest."""
    prefix = granted.removesuffix("*")
    pattern, segments = prefix.split("/"), path.split("/")
    if prefix == granted:
        return len(pattern) == len(segments) and all(map(_segment, pattern, segments))
    *whole, last = pattern
    return (
        len(segments) >= len(pattern)
        and all(map(_segment, whole, segments))
        and "/".join(segments[len(whole) :]).startswith(last)
    )


def side_of(clock_ahead: timedelta) -> str:
    """Return on which side of ours another clock is, and how far."""
    seconds = clock_ahead.total_seconds()
    return f"{abs(seconds):.0f} s {'ahead of' if seconds > 0 else 'behind'} ours"


def _segment(pattern: str, segment: str) -> bool:
    return pattern in ("+", segment)


def _timing(facts: LoginFacts, claims: Claims) -> Diagnosis | None:
    """Return what is wrong with the token's times, by the server's clock and by ours."""
    theirs = facts.now + facts.clock_ahead
    early = claims.not_before is not None and theirs < claims.not_before - CLOCK_TOLERANCE
    late = claims.expires is not None and claims.expires <= theirs
    if not early and not late:
        return None
    if abs(facts.clock_ahead) > CLOCK_TOLERANCE:
        looks = "expired" if late else "not yet valid"
        return Diagnosis(
            Reason.CLOCK,
            f"the login is refused because Vault's clock is "
            f"{side_of(facts.clock_ahead)}, so our token looks {looks} to it",
            MEND_CLOCK,
        )
    if early:
        return Diagnosis(
            Reason.CLOCK,
            f"the login is refused because our token is not valid before {claims.not_before}: "
            "the clock of its issuer is ahead",
            MEND_CLOCK,
        )
    return Diagnosis(
        Reason.EXPIRED,
        f"the login is refused because our token expired at {claims.expires}",
        "use a projected serviceAccountToken volume, which the kubelet renews; by hand: "
        f"`kubectl -n {claims.namespace} create token {claims.service_account}`",
    )


def _audience(facts: LoginFacts, claims: Claims) -> Diagnosis | None:
    wanted = facts.expected_audience
    if wanted is None or wanted in claims.audiences:
        return None
    return Diagnosis(
        Reason.AUDIENCE,
        f"the login is refused because our token is for the audience {_audiences(claims)}, "
        f"and the role {facts.role} wants {wanted}",
        f"set `audience: {wanted}` in the pod's projected serviceAccountToken volume; "
        f"compare with `bao read -field=audience auth/{facts.mount}/role/{facts.role}`",
    )


def _no_role(facts: LoginFacts, role: str) -> Diagnosis | None:
    if facts.role_exists is not False:
        return None
    return Diagnosis(
        Reason.ROLE,
        f"the login is refused because {facts.mount} knows no role {role}, or is a jwt mount "
        "that does not take the token",
        f"see the roles with `bao list auth/{facts.mount}/role` and set VAULT_ROLE, or make it: "
        f"`{_write_role(facts)}`",
    )


def _binding(facts: LoginFacts, claims: Claims, role: str) -> Diagnosis:
    mount = facts.mount
    who = f"{_SUBJECT}{claims.namespace}:{claims.service_account}"
    return Diagnosis(
        Reason.BINDING_OR_REVIEW,
        f"the role {role} at {mount} exists and refuses our token, which is for {who}, "
        f"audience {_audiences(claims)}, issuer {claims.issuer}: the role binds another account "
        "or audience, or Vault cannot have the token reviewed",
        f"compare with `bao read auth/{mount}/role/{role}`; mend the role with "
        f"`{_write_role(facts)}`; if it matches, check kubernetes_host and the reviewer's token "
        f"with `bao read auth/{mount}/config`, and that the reviewer may review: "
        "`kubectl auth can-i create tokenreviews.authentication.k8s.io "
        "--as=system:serviceaccount:<namespace>:<reviewer>`",
    )


def _audiences(claims: Claims) -> str:
    return ", ".join(claims.audiences) or "none"


def _write_policy(facts: ReadFacts) -> str:
    """Return the command that grants the read, for both KV versions if it is not known which."""
    mount, _, rest = facts.kv_path.partition("/")
    paths = [facts.read_path] if facts.read_path else [f"{mount}/data/{rest}", facts.kv_path]
    rules = " ".join(f'path "{path}" {{ capabilities = ["read"] }}' for path in paths)
    return f"`echo '{rules}' | bao policy write <policy> -`, with <policy> one of the role's"


def _write_role(facts: LoginFacts) -> str:
    claims = facts.claims
    name = claims.service_account if claims else "<service account>"
    namespace = claims.namespace if claims else "<namespace>"
    audience = facts.expected_audience or (
        claims.audiences[0] if claims and claims.audiences else ""
    )
    return (
        f"bao write auth/{facts.mount}/role/{facts.role} bound_service_account_names={name} "
        f"bound_service_account_namespaces={namespace} audience={audience} policies=<policy> ttl=1h"
    )


def _instant(value: object) -> datetime | None:
    return datetime.fromtimestamp(value, UTC) if isinstance(value, int | float) else None
