import pytest

from istio_hsm_installer import drill, outage
from istio_hsm_installer.drill import Sample
from istio_hsm_installer.errors import InputError


def samples(*states: str) -> list[Sample]:
    """One request a second, answered half a second later."""
    return [Sample(n, n + 0.5, state) for n, state in enumerate(states)]


def test_the_gap_runs_from_the_last_certificate_before_to_the_first_after() -> None:
    seen = samples("OK", "OK", "UNAVAILABLE", "DEADLINE_EXCEEDED", "UNAVAILABLE", "OK", "OK")
    found = drill.judge(seen, began=1.8, ended=4.0)
    assert found.refused == {"UNAVAILABLE": 2, "DEADLINE_EXCEEDED": 1}
    assert found.seconds_without_issuance == 4.0
    assert found.seconds_to_recovery == 1.5
    assert found.issued == 2


def test_without_an_outage_the_gap_is_the_pace() -> None:
    found = drill.judge(samples(*["OK"] * 6), began=2.0, ended=4.0)
    assert (found.refused, found.seconds_without_issuance) == ({}, 1.0)


def test_what_was_asked_before_the_end_is_no_recovery() -> None:
    seen = [Sample(0, 0.5, "OK"), Sample(1, 5.0, "OK"), Sample(5.1, 5.2, "UNAVAILABLE")]
    assert drill.judge(seen, began=1.0, ended=4.0).seconds_to_recovery is None


@pytest.mark.parametrize(
    ("states", "is_so"),
    [
        (["OK"] * 3, True),
        (["OK"] * 2, False),
        (["OK", "UNAVAILABLE", "OK", "OK"], False),
        (["UNAVAILABLE", "OK", "OK", "OK"], True),
    ],
)
def test_three_certificates_in_a_row_count_as_served(states: list[str], *, is_so: bool) -> None:
    assert drill.is_serving(samples(*states), 0.0) is is_so
    assert not drill.is_serving(samples(*states), 2.0)


class Stroke:
    """An outage whose begin is interrupted after it has done its work."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.ends = 0

    @property
    def what(self) -> str:
        return "nothing"

    def begin(self) -> None:
        raise self.error

    def end(self) -> None:
        self.ends += 1


@pytest.mark.parametrize(("error", "ends"), [(KeyboardInterrupt(), 1), (InputError("none"), 0)])
def test_an_outage_that_was_interrupted_as_it_began_is_ended(
    error: BaseException, ends: int
) -> None:
    stroke = Stroke(error)
    with pytest.raises(type(error)), outage.lasting(stroke):
        pytest.fail("it did not begin")
    assert stroke.ends == ends


def test_what_was_not_scaled_is_not_scaled_back() -> None:
    outage.ScaledToNone(None, "vault/statefulset/vault").end()  # type: ignore[arg-type] # not asked
