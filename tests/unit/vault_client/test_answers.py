"""What a server may answer, and what is made of it."""

from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vault_client.answers import Answer, grant_of, retry_after
from vault_client.errors import (
    DeletedError,
    DestroyedError,
    MissingError,
    ServerError,
)
from vault_client.kv import KvMount, absent

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def answer(body: dict[str, object]) -> Answer:
    return Answer(200, body, None)


def test_a_token_and_its_life_are_read() -> None:
    auth = {"client_token": "s.x", "lease_duration": 3600, "renewable": True}
    grant = grant_of(answer({"auth": auth}))
    assert (grant.token.reveal(), grant.seconds, grant.renewable) == (b"s.x", 3600, True)


@settings(suppress_health_check=[HealthCheck.too_slow])  # the first value, on a busy machine
@given(st.dictionaries(st.sampled_from(["client_token", "lease_duration"]), json_values))
def test_an_answer_of_another_shape_is_a_servers_fault(auth: dict[str, object]) -> None:
    auth["client_token"] = None
    with pytest.raises(ServerError):
        grant_of(answer({"auth": auth}))


@given(json_values)
def test_any_complaint_fits_one_line(errors: object) -> None:
    said = answer({"errors": errors}).complaint()
    assert len(said) <= 200
    assert "\n" not in said


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("7", 7),
        ("Sat, 31 Jan 2026 12:00:30 GMT", 30),
        ("Sat, 31 Jan 2026 11:00:00 GMT", 0),
        ("soon", None),
        ("-1", None),
    ],
)
def test_retry_after_is_understood_in_both_forms(value: str | None, seconds: float | None) -> None:
    assert retry_after(value, NOW) == seconds


@pytest.mark.parametrize(
    ("metadata", "kind"),
    [
        ({"version": 2, "deletion_time": "2026-01-01T00:00:00Z", "destroyed": False}, DeletedError),
        ({"version": 2, "deletion_time": "", "destroyed": True}, DestroyedError),
        (
            {"version": 2, "deletion_time": "2026-01-01T00:00:00Z", "destroyed": True},
            DestroyedError,
        ),
        ({}, MissingError),
        (None, MissingError),
    ],
)
def test_the_kinds_of_absence_are_told_apart(
    metadata: dict[str, object] | None, kind: type[Exception]
) -> None:
    assert type(absent("m/data/s", {"metadata": metadata})) is kind


@pytest.mark.parametrize(
    ("mount", "secret", "path"),
    [
        (KvMount("m/", 1), "m/s", "m/s"),
        (KvMount("m/", 2), "m/s", "m/data/s"),
        (KvMount("m/", 2), "m/data/s", "m/data/s"),
        (KvMount("a/b/", 2), "a/b/c/d", "a/b/data/c/d"),
    ],
)
def test_a_secret_is_read_where_its_engines_version_keeps_it(
    mount: KvMount, secret: str, path: str
) -> None:
    assert mount.read_path(secret) == path
