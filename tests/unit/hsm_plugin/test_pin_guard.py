"""A PIN that was refused is never tried again; a right one is never held back for long."""

import json
import stat
from pathlib import Path

import pytest

from hsm_plugin.errors import PinRefusedError
from hsm_plugin.pin_guard import Outcome, PinGuard, PinState

CALM = PinState(locked=False, final_try=False, count_low=False)
COUNT_LOW = PinState(locked=False, final_try=False, count_low=True)
FINAL_TRY = PinState(locked=False, final_try=True, count_low=True)
LOCKED = PinState(locked=True, final_try=True, count_low=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pin-guard.json"


@pytest.fixture
def guard(path: Path) -> PinGuard:
    return PinGuard(path)


def test_a_first_pin_may_be_tried(guard: PinGuard) -> None:
    guard.permit("1111", CALM)


def test_a_refused_pin_is_never_tried_again(guard: PinGuard) -> None:
    guard.permit("1111", CALM)
    guard.refused("1111")
    for state in (CALM, COUNT_LOW):
        with pytest.raises(PinRefusedError, match="refused before and is not tried again"):
            guard.permit("1111", state)


def test_a_refused_pin_is_not_tried_by_the_next_process_either(path: Path, guard: PinGuard) -> None:
    guard.permit("1111", CALM)
    guard.refused("1111")
    with pytest.raises(PinRefusedError, match="not tried again"):
        PinGuard(path).permit("1111", CALM)


def test_a_new_value_is_tried_after_a_refusal(guard: PinGuard) -> None:
    guard.permit("1111", CALM)
    guard.refused("1111")
    guard.permit("2222", COUNT_LOW)


def test_a_pin_that_was_right_may_be_tried_at_each_start(path: Path, guard: PinGuard) -> None:
    guard.permit("1111", CALM)
    guard.settled()
    assert not path.exists()
    guard.permit("1111", CALM)


def test_settling_twice_is_no_error(guard: PinGuard) -> None:
    guard.settled()
    guard.settled()


def test_an_attempt_cut_off_by_a_crash_is_made_again_when_the_token_counted_nothing(
    path: Path, guard: PinGuard
) -> None:
    guard.permit("1111", CALM)
    PinGuard(path).permit("1111", CALM)


def test_an_attempt_cut_off_by_a_crash_is_not_made_again_when_the_token_counted_a_wrong_pin(
    path: Path, guard: PinGuard
) -> None:
    guard.permit("1111", CALM)
    with pytest.raises(PinRefusedError, match="not tried again"):
        PinGuard(path).permit("1111", COUNT_LOW)


def test_another_value_is_tried_after_a_crash_although_the_token_counted_a_wrong_pin(
    path: Path, guard: PinGuard
) -> None:
    guard.permit("1111", CALM)
    PinGuard(path).permit("2222", COUNT_LOW)


def test_the_attempt_is_on_record_before_it_is_made(path: Path, guard: PinGuard) -> None:
    guard.permit("1111", CALM)
    assert list(json.loads(path.read_text())["attempts"].values()) == ["pending"]
    guard.refused("1111")
    assert list(json.loads(path.read_text())["attempts"].values()) == ["refused"]


def test_every_value_refused_since_the_last_success_is_remembered(
    path: Path, guard: PinGuard
) -> None:
    for wrong in ("1111", "2222", "3333"):
        guard.permit(wrong, CALM)
        guard.refused(wrong)
    for wrong in ("1111", "2222", "3333"):
        with pytest.raises(PinRefusedError, match="refused before"):
            PinGuard(path).permit(wrong, CALM)
    guard.permit("4444", CALM)
    guard.settled()
    guard.permit("1111", CALM)


def test_of_many_refused_values_the_record_stays_bounded(path: Path, guard: PinGuard) -> None:
    for number in range(70):
        guard.refused(f"{number:04}")
    assert len(json.loads(path.read_text())["attempts"]) == 64


def test_a_locked_token_is_never_tried(path: Path, guard: PinGuard) -> None:
    with pytest.raises(PinRefusedError, match="is locked") as caught:
        guard.permit("1111", LOCKED)
    assert "security officer" in caught.value.hint
    assert not path.exists()


def test_the_last_try_is_left_to_a_person(path: Path, guard: PinGuard) -> None:
    with pytest.raises(PinRefusedError, match="would lock the token") as caught:
        guard.permit("1111", FINAL_TRY)
    assert "by hand" in caught.value.hint
    assert not path.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"7",
        b"\xff\xfe",
        b"{}",
        b'{"salt":"00"}',
        b'{"salt":7,"attempts":{}}',
        b'{"salt":"zz","attempts":{}}',
        b'{"salt":"00","attempts":[]}',
        b'{"salt":"00","attempts":{"00":"allowed"}}',
        b'{"outcome":"refused","salt":"00","hash":"00"}',
    ],
)
def test_a_damaged_record_refuses_every_pin_and_says_what_to_do(
    path: Path, guard: PinGuard, content: bytes
) -> None:
    path.write_bytes(content)
    with pytest.raises(PinRefusedError, match="is damaged") as caught:
        guard.permit("1111", CALM)
    assert "delete this file" in caught.value.hint
    assert path.read_bytes() == content
    path.unlink()
    guard.permit("1111", CALM)


def test_a_record_that_cannot_be_read_refuses_every_pin(path: Path, guard: PinGuard) -> None:
    path.mkdir()
    with pytest.raises(PinRefusedError):
        guard.permit("1111", CALM)


def test_a_record_that_cannot_be_written_means_that_nothing_is_tried(tmp_path: Path) -> None:
    with pytest.raises(PinRefusedError):
        PinGuard(tmp_path / "gone" / "pin-guard.json").permit("1111", CALM)


def test_the_record_is_readable_by_its_owner_only(path: Path, guard: PinGuard) -> None:
    guard.permit("1111", CALM)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    guard.refused("1111")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_record_does_not_hold_the_pin_and_two_records_of_one_pin_differ(
    path: Path, guard: PinGuard
) -> None:
    guard.permit("canary-1111", CALM)
    first = path.read_text()
    guard.settled()
    guard.permit("canary-1111", CALM)
    second = path.read_text()
    for text in (first, second):
        assert "canary" not in text
        assert b"canary".hex() not in text
    assert json.loads(first)["attempts"].keys() != json.loads(second)["attempts"].keys()
    assert json.loads(first)["salt"] != json.loads(second)["salt"]


def test_no_half_written_file_is_left_beside_the_record(path: Path, guard: PinGuard) -> None:
    guard.permit("1111", CALM)
    guard.refused("1111")
    assert list(path.parent.iterdir()) == [path]


def test_refusals_do_not_show_the_pin(guard: PinGuard) -> None:
    guard.permit("canary-1111", CALM)
    guard.refused("canary-1111")
    with pytest.raises(PinRefusedError) as caught:
        guard.permit("canary-1111", CALM)
    assert "canary" not in f"{caught.value} {caught.value.hint}"


def test_a_refusal_by_one_token_says_nothing_about_another(path: Path, guard: PinGuard) -> None:
    first, second = guard.of_token("serial-1"), guard.of_token("serial-2")
    first.permit("1111", CALM)
    first.refused("1111")
    second.permit("1111", CALM)
    second.settled()
    with pytest.raises(PinRefusedError, match="not tried again"):
        PinGuard(path).of_token("serial-1").permit("1111", CALM)
    second.permit("1111", CALM)


def test_the_last_token_that_settles_leaves_no_record(path: Path, guard: PinGuard) -> None:
    for serial in ("1", "2"):
        guard.of_token(serial).permit("1111", CALM)
    guard.of_token("1").settled()
    assert path.exists()
    guard.of_token("2").settled()
    assert not path.exists()


def test_the_outcomes_of_one_token_are_not_those_of_another(guard: PinGuard) -> None:
    guard.of_token("1").permit("1111", CALM)
    guard.of_token("1").refused("1111")
    guard.of_token("2").permit("1111", CALM)
    assert guard.of_token("1").outcomes() == [Outcome.REFUSED]
    assert guard.of_token("2").outcomes() == [Outcome.PENDING]
    assert guard.of_token("3").outcomes() == []


def test_a_record_of_a_version_without_serials_counts_for_every_token(guard: PinGuard) -> None:
    guard.permit("1111", CALM)
    guard.refused("1111")
    for serial in ("1", "2"):
        with pytest.raises(PinRefusedError, match="not tried again"):
            guard.of_token(serial).permit("1111", CALM)
    guard.of_token("1").permit("2222", CALM)
    guard.of_token("1").refused("2222")
    for pin in ("1111", "2222"):
        with pytest.raises(PinRefusedError, match="not tried again"):
            guard.of_token("1").permit(pin, CALM)
    guard.of_token("2").permit("2222", CALM)


@pytest.mark.parametrize(
    "text", ['{"tokens": []}', '{"tokens": {"1": {}}}', '{"tokens": {"1": {"salt": "x"}}}', "[]"]
)
def test_a_damaged_record_of_one_token_refuses_every_pin(
    path: Path, guard: PinGuard, text: str
) -> None:
    path.write_text(text)
    with pytest.raises(PinRefusedError, match="is damaged"):
        guard.of_token("1").permit("1111", CALM)
