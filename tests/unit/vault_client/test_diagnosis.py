"""A 403 means five things; each is named, and the command that mends it."""

import base64
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vault_client.diagnosis import (
    Claims,
    LoginFacts,
    ReadFacts,
    Reason,
    covers,
    decode_claims,
    diagnose_login,
    diagnose_read,
)

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
CLAIMS = Claims(
    issuer="https://kubernetes.default.svc",
    audiences=("vault",),
    namespace="istio-system",
    service_account="istiod",
    not_before=NOW - timedelta(minutes=5),
    expires=NOW + timedelta(minutes=55),
)
FACTS = LoginFacts(
    mount="asm-c1/hsm",
    role="istiod",
    claims=CLAIMS,
    expected_audience="vault",
    mount_exists=True,
    role_exists=True,
    clock_ahead=timedelta(0),
    now=NOW,
)
HOUR = timedelta(hours=1)


@pytest.mark.parametrize(
    ("facts", "reason", "command"),
    [
        (replace(FACTS, mount_exists=False), Reason.AUTH_PATH, "bao auth enable -path=asm-c1/hsm"),
        (replace(FACTS, role_exists=False), Reason.ROLE, "bao write auth/asm-c1/hsm/role/istiod"),
        (replace(FACTS, role=None), Reason.APPROLE, "bao write -f auth/asm-c1/hsm/role"),
        (replace(FACTS, claims=None), Reason.TOKEN, "projected serviceAccountToken"),
        (replace(FACTS, expected_audience="other"), Reason.AUDIENCE, "audience: other"),
        (
            replace(FACTS, claims=replace(CLAIMS, expires=NOW - HOUR)),
            Reason.EXPIRED,
            "kubectl -n istio-system create token istiod",
        ),
        (
            replace(FACTS, claims=replace(CLAIMS, not_before=NOW + HOUR)),
            Reason.CLOCK,
            "chronyc tracking",
        ),
        (replace(FACTS, clock_ahead=HOUR), Reason.CLOCK, "chronyc tracking"),
        (replace(FACTS, clock_ahead=-HOUR), Reason.CLOCK, "chronyc tracking"),
        (FACTS, Reason.BINDING_OR_REVIEW, "bao read auth/asm-c1/hsm/role/istiod"),
    ],
)
def test_each_cause_of_a_refused_login_is_named_with_its_remedy(
    facts: LoginFacts, reason: Reason, command: str
) -> None:
    found = diagnose_login(facts)
    assert found.reason is reason
    assert command in found.hint


def test_probes_that_had_no_answer_accuse_nobody() -> None:
    facts = replace(FACTS, mount_exists=None, role_exists=None, expected_audience=None)
    assert diagnose_login(facts).reason is Reason.BINDING_OR_REVIEW


def test_a_small_difference_of_clocks_is_no_cause() -> None:
    facts = replace(FACTS, clock_ahead=timedelta(seconds=20))
    assert diagnose_login(facts).reason is Reason.BINDING_OR_REVIEW


GRANTS = {
    "auth/token/lookup-self": frozenset({"read"}),
    "cubbyhole/*": frozenset({"read", "create"}),
}
READ = ReadFacts("asm-c1/istiod", "asm-c1/data/istiod", GRANTS)


@pytest.mark.parametrize(
    ("granted", "reason", "words"),
    [
        (None, Reason.POLICY, "reading asm-c1/data/istiod is refused"),
        ({}, Reason.POLICY, "none of the token's policies grants"),
        ({"asm-c1/istiod": "read"}, Reason.POLICY, "the policy grants asm-c1/istiod"),
        ({"asm-c1/data/istiod": "list"}, Reason.POLICY, "none of the token's policies grants"),
        ({"asm-c2/data/istiod": "read"}, Reason.KV_PATH, "may read asm-c2/data/istiod"),
        ({"asm-c1/data/*": "read"}, Reason.UNKNOWN, "although the token's policies grant it"),
    ],
)
def test_a_refused_read_is_laid_to_the_policy_or_to_the_path(
    granted: dict[str, str] | None, reason: Reason, words: str
) -> None:
    paths = None
    if granted is not None:
        paths = GRANTS | {path: frozenset({name}) for path, name in granted.items()}
    found = diagnose_read(replace(READ, granted=paths))
    assert found.reason is reason
    assert words in found.message


def test_the_policy_to_write_names_both_versions_while_it_is_not_known_which() -> None:
    hint = diagnose_read(replace(READ, read_path=None)).hint
    assert 'path "asm-c1/data/istiod"' in hint
    assert 'path "asm-c1/istiod"' in hint
    assert 'path "asm-c1/istiod"' not in diagnose_read(READ).hint


@pytest.mark.parametrize(
    ("granted", "path", "expected"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a/b/c", False),
        ("a/*", "a/b/c", True),
        ("a/b*", "a/bc", True),
        ("a/b*", "a/c", False),
        ("a/+/c", "a/b/c", True),
        ("a/+/c", "a/b/b/c", False),
        ("+/data/*", "a/data/b", True),
        ("*", "a/b", True),
    ],
)
def test_policy_paths_cover_what_vault_says_they_cover(
    granted: str, path: str, *, expected: bool
) -> None:
    assert covers(granted, path) is expected


def test_claims_are_read_without_judging_the_signature() -> None:
    payload = {
        "iss": CLAIMS.issuer,
        "aud": "vault",
        "sub": "system:serviceaccount:istio-system:istiod",
        "nbf": int(NOW.timestamp()) - 300,
        "exp": int(NOW.timestamp()) + 3300,
    }
    assert decode_claims(jwt.encode(payload, "k" * 32).encode()) == CLAIMS


@given(st.binary(max_size=100))
def test_what_is_no_token_has_no_claims(value: bytes) -> None:
    assert decode_claims(value) is None


@given(st.dictionaries(st.sampled_from(["aud", "sub", "exp", "nbf", "iss"]), st.integers()))
def test_claims_of_odd_types_break_nothing(payload: dict[str, int]) -> None:
    body = base64.urlsafe_b64encode(json.dumps(payload).encode()).rstrip(b"=")
    decode_claims(b"header." + body + b".signature")
