from istiod_ca_bridge.batch_size import BatchSize

MOST = 48


def settled(callers: int, batches: int = 400) -> BatchSize:
    """Return what is learnt from so many batches, when no more than the callers can come."""
    size = BatchSize(MOST)
    for _ in range(batches):
        if size.wanted <= callers:
            size.came(size.wanted)
        else:
            size.fell_short(callers)
    return size


def test_of_a_stranger_nothing_is_expected() -> None:
    assert BatchSize(MOST).wanted == 1


def test_as_many_are_wanted_as_there_are_callers() -> None:
    for callers in (1, 2, 8, 20):
        assert settled(callers).wanted in (callers, callers + callers // 4 + 1)


def test_it_is_seldom_in_vain_that_more_are_wanted() -> None:
    size, in_vain = settled(8), 0
    for _ in range(170):
        if size.wanted <= 8:
            size.came(8)
        else:
            in_vain += 1
            size.fell_short(8)
    assert 0 < in_vain <= 10


def test_no_more_are_wanted_than_the_most() -> None:
    assert settled(1000).wanted == MOST


def test_when_fewer_came_no_more_are_wanted_than_those() -> None:
    size = settled(1000)
    size.fell_short(3)
    assert size.wanted == 3
