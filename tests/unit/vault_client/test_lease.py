"""When to renew and how long to wait, for every throw of the dice."""

from hypothesis import given
from hypothesis import strategies as st

from vault_client.lease import Backoff, Lease, poll_wait

dice = st.floats(0, 1, exclude_max=True)
seconds = st.floats(0.001, 1e6)


@given(seconds, dice)
def test_a_token_is_refreshed_near_two_thirds_of_its_life(life: float, throw: float) -> None:
    lease = Lease(starts=100, seconds=life, renewable=True, granted_seconds=life)
    part = (lease.refresh_at(throw) - 100) / life
    assert 0.59 < part < 0.667


@given(dice)
def test_a_token_without_an_end_is_never_refreshed(throw: float) -> None:
    lease = Lease(starts=100, seconds=0, renewable=False, granted_seconds=0)
    assert lease.refresh_at(throw) == float("inf")
    assert lease.expires == float("inf")
    assert not lease.capped()


def test_a_renewal_that_yields_less_than_the_login_has_met_the_maximum() -> None:
    lease = Lease(starts=0, seconds=3600, renewable=True, granted_seconds=3600)
    assert not lease.renewed(2400, 3600, renewable=True).capped()
    assert lease.renewed(2400, 1200, renewable=True).capped()


@given(st.integers(1, 10_000), dice)
def test_a_retry_is_neither_at_once_nor_ever_far_off(failures: int, throw: float) -> None:
    wait = Backoff().wait(failures, throw)
    assert 0.2 <= wait <= 60


def test_retries_spread_over_the_whole_range_and_grow() -> None:
    backoff = Backoff(base_seconds=1, cap_seconds=60, floor_seconds=0)
    assert backoff.wait(5, 0.0) == 0
    assert backoff.wait(1, 0.5) == 1
    assert backoff.wait(3, 0.5) == 4
    assert backoff.wait(50, 0.5) == 30


@given(st.integers(1, 100), dice, st.floats(0, 600))
def test_the_server_is_given_the_time_that_it_asks_for(
    failures: int, throw: float, asked: float
) -> None:
    assert Backoff().wait(failures, throw, asked) >= asked


def test_a_server_cannot_ask_for_ever() -> None:
    assert Backoff().wait(1, 0.5, 1e9) == 600


@given(seconds, dice)
def test_polls_keep_to_the_interval_within_a_tenth(interval: float, throw: float) -> None:
    assert 0.89 * interval <= poll_wait(interval, throw) <= 1.11 * interval
