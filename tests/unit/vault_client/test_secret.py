"""A secret does not show itself."""

import copy
import json
import pickle

import pytest

from vault_client.secret import Secret

CANARY = b"canary-4711"


@pytest.fixture
def secret() -> Secret:
    return Secret(CANARY)


def test_it_gives_its_value_only_when_asked(secret: Secret) -> None:
    assert secret.reveal() == CANARY
    with secret.view() as view:
        assert bytes(view) == CANARY


@pytest.mark.parametrize("shown", [repr, str, "{}".format, "{0!r:>40}".format, "%s".__mod__])
def test_no_way_to_print_it_shows_it(secret: Secret, shown: object) -> None:
    assert callable(shown)
    assert "canary" not in shown(secret)
    assert "redacted" in shown(secret)


def test_a_container_that_holds_it_does_not_show_it(secret: Secret) -> None:
    assert "canary" not in f"{[secret]} {{'a': secret}} {(secret,)!r}"


@pytest.mark.parametrize("leak", [pickle.dumps, copy.deepcopy, json.dumps, hash])
def test_no_copy_leaves_by_serialising_or_hashing(secret: Secret, leak: object) -> None:
    assert callable(leak)
    with pytest.raises(TypeError):
        leak(secret)


def test_wiping_leaves_nothing_of_the_value(secret: Secret) -> None:
    secret.wipe()
    assert secret.reveal() == bytes(len(CANARY))


def test_equality_is_of_values_and_of_secrets_only(secret: Secret) -> None:
    assert secret == Secret(CANARY)
    assert secret != Secret(CANARY + b"x")
    assert secret != CANARY
