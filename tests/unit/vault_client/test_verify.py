"""Only a set whose parts can work together is published."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from tests.support.hsm_credentials import FOUR_KEYS, make_credentials
from tests.support.pki import issue
from vault_client.delivery import FileNames
from vault_client.errors import InvalidSetError
from vault_client.secret import Secret
from vault_client.verify import Verified, verify

NOW = datetime.now(UTC)
GOOD = make_credentials()
NAMES = FileNames()


def judged(
    more: Mapping[str, str | None] | None = None,
    *,
    now: datetime = NOW,
    names: FileNames = NAMES,
    clock_ahead: timedelta = timedelta(0),
) -> Verified:
    """Return the verdict on the good values with some replaced; None is a value of no string."""
    values = {
        key: None if value is None else Secret(value.encode())
        for key, value in {**GOOD, **(more or {})}.items()
    }
    return verify(values, 7, names, now, clock_ahead=clock_ahead)


def faults(**more: str | None) -> str:
    with pytest.raises(InvalidSetError) as caught:
        judged(more)
    for value in GOOD.values():
        assert value not in f"{caught.value} {caught.value.hint}"
    return str(caught.value)


def test_a_good_set_comes_out_under_its_file_names_with_its_version() -> None:
    verified = judged()
    files = {name: secret.reveal().decode() for name, secret in verified.delivered.files.items()}
    assert files == {NAMES.by_key()[key]: GOOD[key] for key in FOUR_KEYS}
    assert verified.delivered.version == 7
    assert set(verified.expiries) == {"clientcert.pem", "servercert.pem"}


@pytest.mark.parametrize("key", FOUR_KEYS)
def test_a_missing_part_is_named(key: str) -> None:
    values = {name: Secret(value.encode()) for name, value in GOOD.items() if name != key}
    with pytest.raises(InvalidSetError, match=f"{key} is missing"):
        verify(values, 1, NAMES, NOW)


def test_a_key_written_in_another_case_is_pointed_out() -> None:
    values = {name.lower(): Secret(value.encode()) for name, value in GOOD.items()}
    with pytest.raises(InvalidSetError, match="there is pin: keys are case-sensitive"):
        verify(values, 1, NAMES, NOW)


def test_a_number_is_no_pin() -> None:
    assert "PIN is not a string" in faults(PIN=None)


def test_a_key_of_another_certificate_is_refused() -> None:
    assert "does not belong" in faults(clientkey=make_credentials()["clientkey"])


def test_an_encrypted_key_is_refused() -> None:
    key = issue("client").key.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password")
    )
    assert "clientkey is encrypted" in faults(clientkey=key.decode())


@pytest.mark.parametrize("key", ["clientcert", "clientkey", "servercert"])
def test_a_pem_that_was_cut_off_is_refused(key: str) -> None:
    assert f"{key} is no PEM" in faults(**{key: GOOD[key][:100]})


def test_an_expired_and_a_future_certificate_are_refused() -> None:
    with pytest.raises(InvalidSetError, match="clientcert expired at"):
        judged(now=NOW + timedelta(days=31))
    with pytest.raises(InvalidSetError, match="clientcert is not valid before"):
        judged(now=NOW - timedelta(days=31))


@pytest.mark.parametrize("pin", ["", "123", "x" * 256, " 1234", "12\n34", "12\x0034", "pïn4"])
def test_a_pin_that_no_token_takes_is_refused(pin: str) -> None:
    with pytest.raises(InvalidSetError, match="PIN"):
        judged({"PIN": pin})


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_line_end_that_a_file_brings_along_is_taken_off_the_pin(end: str) -> None:
    assert judged({"PIN": f"1234{end}"}).delivered.files["pin"].reveal() == b"1234"


def test_all_faults_are_named_together() -> None:
    text = faults(clientcert="x", clientkey="y", PIN="")
    assert text.count(";") == 2


def test_further_keys_are_carried_unjudged_but_must_be_there() -> None:
    names = FileNames(extra=(("more", "more.txt"),))
    files = judged({"more": "any\x00thing"}, names=names).delivered.files
    assert files["more.txt"].reveal() == b"any\x00thing"
    with pytest.raises(InvalidSetError, match="more is missing"):
        judged(names=names)


@given(st.sampled_from(FOUR_KEYS), st.text(max_size=50))
def test_no_value_breaks_the_judgement(key: str, value: str) -> None:
    try:
        judged({key: value})
    except InvalidSetError as error:
        assert str(error)  # noqa: PT017 - either outcome is right, a crash is not


@pytest.mark.parametrize("ours", [timedelta(hours=-5), timedelta(days=40)])
def test_a_set_that_is_valid_by_vaults_clock_only_points_at_the_clocks(ours: timedelta) -> None:
    with pytest.raises(InvalidSetError, match=f"{abs(ours).total_seconds():.0f} s") as caught:
        judged(now=NOW + ours, clock_ahead=-ours)
    assert caught.value.reason == "clock"
    assert "chronyc" in caught.value.hint


@pytest.mark.parametrize("ahead", [timedelta(0), timedelta(seconds=20), timedelta(days=1)])
def test_a_set_that_no_clock_finds_valid_is_the_sets_own_fault(ahead: timedelta) -> None:
    with pytest.raises(InvalidSetError, match="expired at") as caught:
        judged(now=NOW + timedelta(days=40), clock_ahead=ahead)
    assert caught.value.reason is None


def test_another_fault_beside_the_clocks_is_not_hidden() -> None:
    values = {k: Secret(v.encode()) for k, v in GOOD.items() if k != "PIN"}
    with pytest.raises(InvalidSetError, match="PIN is missing") as caught:
        verify(values, 7, NAMES, NOW - timedelta(hours=5), clock_ahead=timedelta(hours=5))
    assert caught.value.reason is None
