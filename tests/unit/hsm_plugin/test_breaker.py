"""The breaker opens after failures in a row, says when to come back, and pauses grow."""

import pytest

from hsm_plugin.breaker import (
    FIRST_SECONDS,
    HELD_SECONDS,
    LAST_SECONDS,
    MAX_FAILURES,
    Backoff,
    Breaker,
)


@pytest.fixture
def breaker() -> Breaker:
    closed = Breaker("mesh")
    closed.close()
    return closed


def test_it_is_open_until_the_token_was_found() -> None:
    error = Breaker("mesh").refuse(now=0.0)
    assert Breaker("mesh").is_open
    assert "the plugin is starting" in str(error)


def test_failures_in_a_row_are_one_too_many_at_the_limit(breaker: Breaker) -> None:
    assert [breaker.failed() for _ in range(MAX_FAILURES)] == [False] * (MAX_FAILURES - 1) + [True]


def test_an_answer_between_failures_starts_the_count_anew(breaker: Breaker) -> None:
    for _ in range(MAX_FAILURES - 1):
        breaker.failed()
    breaker.succeeded()
    assert [breaker.failed() for _ in range(MAX_FAILURES)][-2:] == [False, True]


def test_a_new_connection_starts_the_count_anew(breaker: Breaker) -> None:
    for _ in range(MAX_FAILURES):
        breaker.failed()
    breaker.open("gone", retry_at=5.0)
    breaker.close()
    assert not breaker.is_open
    assert not breaker.failed()


def test_a_refusal_names_the_reason_and_the_time_of_the_next_attempt(breaker: Breaker) -> None:
    breaker.open("CKR_DEVICE_ERROR", retry_at=12.5)
    error = breaker.refuse(now=10.0)
    assert "CKR_DEVICE_ERROR" in str(error)
    assert error.retry_after_seconds == 2.5


def test_an_attempt_that_is_due_is_worth_a_short_pause_all_the_same(breaker: Breaker) -> None:
    breaker.open("gone", retry_at=1.0)
    seconds = breaker.refuse(now=100.0).retry_after_seconds
    assert seconds is not None
    assert 0 < seconds <= FIRST_SECONDS


def test_the_first_attempt_is_at_once_and_pauses_grow_to_a_limit() -> None:
    backoff = Backoff()
    pauses = [backoff.pause() for _ in range(12)]
    assert pauses[0] == 0
    assert FIRST_SECONDS / 2 <= pauses[1] <= FIRST_SECONDS
    assert pauses[3] > pauses[1]
    assert LAST_SECONDS / 2 <= pauses[-1] <= LAST_SECONDS


def test_after_a_connection_that_held_the_next_attempt_is_at_once() -> None:
    backoff = Backoff()
    for _ in range(12):
        backoff.pause()
    backoff.held(HELD_SECONDS)
    assert backoff.pause() == 0


def test_connections_that_break_at_once_are_waited_for_ever_longer() -> None:
    backoff = Backoff()
    for _ in range(12):
        backoff.pause()
        backoff.held(0.1)
    assert backoff.pause() >= LAST_SECONDS / 2


def test_where_trouble_is_expected_not_even_the_first_attempt_is_at_once() -> None:
    backoff = Backoff()
    backoff.expect_trouble()
    assert backoff.pause() >= FIRST_SECONDS / 2
