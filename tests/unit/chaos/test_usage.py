"""Growth is told from rest."""

import os
import time

from chaos.usage import Usage, growth, usage_of


def samples(kib: list[int], files: list[int] | None = None, threads: int = 9) -> list[Usage]:
    counted = files or [20] * len(kib)
    return [Usage(float(n), it, threads, counted[n]) for n, it in enumerate(kib)]


def test_a_process_that_only_warms_up_is_flat() -> None:
    assert growth(samples([50_000, 80_000, *[90_000] * 20])) == []


def test_memory_that_goes_on_growing_is_told() -> None:
    assert growth(samples([50_000 + 5_000 * it for it in range(30)]))


def test_files_that_stay_open_are_told() -> None:
    found = growth(samples([90_000] * 30, files=[20 + 2 * it for it in range(30)]))
    assert found == ["files 46 to 64"]


def test_a_process_with_one_sample_is_not_judged() -> None:
    assert growth(samples([90_000])) == []


def test_the_usage_of_a_process_is_read_and_of_one_that_is_gone_is_none() -> None:
    own = usage_of(os.getpid(), time.monotonic())
    assert own is not None
    assert own.resident_kib > 1000
    assert own.files
    assert usage_of(2**22 + 1, 0.0) is None
