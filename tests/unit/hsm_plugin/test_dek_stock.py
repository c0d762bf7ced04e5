"""DEKs are made ahead for who asks for many, live for a moment, and are given out once."""

from collections.abc import Callable
from itertools import count

import pytest

from hsm_plugin.dek_stock import LIFE_SECONDS, MAX_DEKS, MAX_KEKS, START_DEMAND, DekStock

KEK = b"kek"


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds

    def advance(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def stock(clock: Clock) -> DekStock:
    return DekStock(clock)


def ask_often(stock: DekStock, kek_id: bytes = KEK, times: int = 500) -> None:
    for _ in range(times):
        stock.ask(kek_id)


def blobs(number: int) -> list[bytes]:
    return [b"%d" % value for value in range(number)]


def test_a_kek_that_is_asked_for_seldom_never_has_a_stock(stock: DekStock, clock: Clock) -> None:
    for _ in range(100):
        stock.ask(KEK)
        assert stock.wanted(KEK) == 0
        clock.advance(1.0)


def test_a_stock_begins_with_the_demand_and_grows_with_it_up_to_a_limit(stock: DekStock) -> None:
    assert stock.wanted(KEK) == 0
    for number in count(1):
        stock.ask(KEK)
        if number < START_DEMAND:
            assert stock.wanted(KEK) == 0
        else:
            assert stock.wanted(KEK) == min(number, MAX_DEKS)
        if number > 2 * MAX_DEKS:
            break


def test_demand_ends_when_nobody_asks(stock: DekStock, clock: Clock) -> None:
    ask_often(stock)
    clock.advance(2.0)
    stock.ask(KEK)
    assert stock.wanted(KEK) == 0


def test_none_are_made_while_half_of_the_stock_is_there(stock: DekStock) -> None:
    ask_often(stock)
    stock.put(KEK, blobs(MAX_DEKS), stock.begin())
    for _ in range(MAX_DEKS // 2 - 1):
        stock.take(KEK)
    assert stock.wanted(KEK) == 0
    stock.take(KEK)
    assert stock.wanted(KEK) == MAX_DEKS // 2


def test_each_dek_is_given_out_once_the_oldest_first(stock: DekStock) -> None:
    ask_often(stock)
    stock.put(KEK, [b"1", b"2"], stock.begin())
    assert [stock.take(KEK) for _ in range(4)] == [b"1", b"2", None, None]
    assert stock.dropped() == {}


def test_a_dek_of_one_kek_is_not_given_out_for_another(stock: DekStock) -> None:
    ask_often(stock)
    ask_often(stock, b"other")
    stock.put(KEK, [b"1"], stock.begin())
    assert stock.take(b"other") is None
    assert stock.take(KEK) == b"1"


def test_a_dek_is_not_given_out_after_its_life(stock: DekStock, clock: Clock) -> None:
    ask_often(stock)
    stock.put(KEK, [b"old"], stock.begin())
    clock.advance(LIFE_SECONDS / 2)
    stock.put(KEK, [b"new"], stock.begin())
    clock.advance(LIFE_SECONDS / 2)
    assert stock.take(KEK) == b"new"
    assert stock.dropped() == {KEK: 1}


def test_what_nobody_takes_is_dropped_without_a_call(stock: DekStock, clock: Clock) -> None:
    ask_often(stock)
    stock.put(KEK, blobs(3), stock.begin())
    stock.expire()
    assert stock.count == 3
    clock.advance(LIFE_SECONDS)
    stock.expire()
    assert (stock.count, stock.dropped()) == (0, {KEK: 3})


def test_after_a_loss_nothing_is_left(stock: DekStock) -> None:
    ask_often(stock)
    stock.put(KEK, blobs(3), stock.begin())
    stock.clear()
    assert stock.take(KEK) is None
    assert (stock.count, stock.wanted(KEK)) == (0, 0)
    assert stock.dropped() == {KEK: 3}


@pytest.mark.parametrize("lose", [DekStock.clear, lambda stock: stock.forget(KEK)])
def test_deks_that_were_being_made_during_a_loss_are_not_taken(
    stock: DekStock,
    lose: Callable[[DekStock], None],
) -> None:
    ask_often(stock)
    begun = stock.begin()
    lose(stock)
    ask_often(stock)
    stock.put(KEK, blobs(3), begun)
    assert stock.take(KEK) is None
    assert stock.dropped() == {KEK: 3}


def test_a_forgotten_kek_takes_no_other_with_it(stock: DekStock) -> None:
    for kek_id in (KEK, b"other"):
        ask_often(stock, kek_id)
        stock.put(kek_id, [kek_id], stock.begin())
    stock.forget(KEK)
    assert (stock.take(KEK), stock.take(b"other")) == (None, b"other")


def test_only_so_many_keks_have_a_stock_and_the_one_asked_for_longest_ago_gives_way(
    stock: DekStock,
) -> None:
    ask_often(stock)
    stock.put(KEK, blobs(2), stock.begin())
    for number in range(MAX_KEKS):
        stock.ask(b"%d" % number)
    assert stock.take(KEK) is None
    assert stock.dropped() == {KEK: 2}
    assert stock.dropped() == {}
