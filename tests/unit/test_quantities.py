"""How the picture of the dashboard writes values."""

import pytest

from demo.quantities import ticks, written


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "s", "0 s"),
        (0.00025, "s", "250 µs"),
        (0.0125, "s", "12.5 ms"),
        (59.5, "s", "59.5 s"),
        (90, "s", "1.5 min"),
        (-7200, "s", "-2 hours"),
        (2592000, "s", "30 days"),
        (0, "short", "0"),
        (1024, "short", "1.02 K"),
        (12.34, "reqps", "12.3 req/s"),
        (512, "bytes", "512 B"),
        (104857600, "bytes", "100 MiB"),
    ],
)
def test_a_value_is_written_in_its_unit(value: float, unit: str, text: str) -> None:
    assert written(value, unit) == text


@pytest.mark.parametrize("unit", ["short", "s", "bytes", "reqps"])
@pytest.mark.parametrize("highest", [0.0004, 0.3, 1.0, 7.0, 99.9, 1000.0, 123456789.0])
def test_the_marks_of_an_axis_are_few_begin_at_zero_and_end_above_the_highest_value(
    highest: float, unit: str
) -> None:
    marks = ticks(highest, unit)

    assert marks[0] == 0
    assert marks[-2] < highest <= marks[-1] * (1 + 1e-9)
    assert 3 <= len(marks) <= 6
