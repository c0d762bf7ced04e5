"""Calls of the PKCS#11 module are counted by thread and added up."""

import threading

from hsm_plugin.call_times import BOUNDS, CallTimes, Tally
from hsm_plugin.sightings import Sightings
from hsm_plugin.worker_snapshot import PinSigns, WorkerSnapshot, decode


def test_a_call_falls_into_the_first_bucket_that_holds_it() -> None:
    times = CallTimes()
    times.note("C_Sign", BOUNDS[0])
    times.note("C_Sign", BOUNDS[0] * 1.01)
    times.note("C_Sign", BOUNDS[-1] * 2)
    tally = times.total()["C_Sign"]
    assert (tally.counts[0], tally.counts[1], tally.counts[-1]) == (1, 1, 1)
    assert sum(tally.counts) == 3


def test_threads_are_added_up_and_failures_keep_their_names() -> None:
    times = CallTimes()

    def work() -> None:
        for _ in range(1000):
            times.note("C_Sign", 0.001)
        times.note("C_Sign", 0.001, "CKR_DEVICE_ERROR")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = times.total()
    assert sum(total["C_Sign"].counts) == 4004
    assert total["C_Sign"].failures == {"CKR_DEVICE_ERROR": 4}


def snapshot(calls: int) -> WorkerSnapshot:
    times = CallTimes()
    for _ in range(calls):
        times.note("C_Login", 0.01)
    times.note("C_Login", 0.01, "CKR_PIN_INCORRECT")
    pin = PinSigns(count_low=True, refused_values=1)
    return WorkerSnapshot(2, 8, {"first": pin, "second": PinSigns()}, times.total())


def test_a_snapshot_comes_back_as_it_was_sent() -> None:
    sent = snapshot(3)
    assert decode(sent.encode()) == sent


def test_the_calls_of_a_worker_that_ended_stay_in_the_sum() -> None:
    seen = Sightings()
    assert seen.calls() == {}
    seen.see_worker(10, snapshot(3))
    seen.see_worker(10, snapshot(5))
    assert sum(seen.calls()["C_Login"].counts) == 6
    seen.see_worker(11, snapshot(1))
    assert sum(seen.calls()["C_Login"].counts) == 8
    assert seen.calls()["C_Login"].failures == {"CKR_PIN_INCORRECT": 2}
    assert seen.workers == 2


def test_adding_up_changes_neither_summand() -> None:
    one = Tally()
    one.counts[0] = 1
    total = Tally()
    total.add(one)
    total.add(one)
    assert (total.counts[0], one.counts[0]) == (2, 1)
