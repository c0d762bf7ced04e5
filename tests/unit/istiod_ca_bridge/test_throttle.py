from istiod_ca_bridge.throttle import Throttle


def test_a_burst_is_let_through_then_one_a_second_that_counts_the_rest() -> None:
    seconds = [0.0]
    throttle = Throttle(lambda: seconds[0])

    assert [throttle.admit() for _ in range(22)] == [*[0] * 20, None, None]
    seconds[0] = 1.0
    assert [throttle.admit(), throttle.admit()] == [2, None]
    seconds[0] = 1000.0
    assert [throttle.admit() for _ in range(21)] == [1, *[0] * 19, None]
