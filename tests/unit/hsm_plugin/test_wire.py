"""What one end of the worker's socket encodes, the other end decodes."""

import pytest

from hsm_plugin import wire
from hsm_plugin.errors import BadRequestError, ConflictError, HsmPluginError, HsmUnavailableError
from hsm_plugin.recovery import Action
from hsm_plugin.wire import Kind, Operation


@pytest.mark.parametrize("fields", [[], [b""], [b"a", b"", b"\0" * 1000]])
def test_a_request_comes_back(fields: list[bytes]) -> None:
    packet = wire.encode_request(7, 1.5, Operation.SIGN, fields)
    request = wire.decode_request(memoryview(packet))
    assert request == wire.Request(7, 1.5, Operation.SIGN, fields)


def test_a_request_that_fits_no_packet_is_refused() -> None:
    with pytest.raises(BadRequestError, match="more than"):
        wire.encode_request(1, 0.0, Operation.UNWRAP, [bytes(wire.MAX_PACKET_BYTES)])


def test_a_large_result_travels_in_parts() -> None:
    fields = [bytes([number]) * 40_000 for number in range(9)]
    answers = [wire.decode_answer(memoryview(packet)) for packet in wire.encode_answer(3, fields)]
    assert [answer.kind for answer in answers[:-1]] == [Kind.MORE] * (len(answers) - 1)
    assert answers[-1].kind is Kind.DONE
    assert [entry for answer in answers for entry in answer.fields] == fields


@pytest.mark.parametrize("fields", [[b"a"] * 60_000, [b"x", bytes(90_000), b"y", bytes(90_000)]])
def test_no_packet_of_an_answer_is_too_large(fields: list[bytes]) -> None:
    packets = wire.encode_answer(3, fields)
    assert max(map(len, packets)) <= wire.MAX_PACKET_BYTES
    answers = [wire.decode_answer(memoryview(packet)) for packet in packets]
    assert [entry for answer in answers for entry in answer.fields] == fields


def test_a_value_that_fits_no_packet_is_refused() -> None:
    with pytest.raises(ConflictError, match="a value of 200000 bytes"):
        wire.encode_answer(3, [b"small", bytes(200_000)])


def test_an_error_of_any_length_fits_into_a_packet() -> None:
    packet = wire.encode_failure(5, ConflictError("x" * 500_000, hint="y" * 500_000), None)
    assert len(packet) <= wire.MAX_PACKET_BYTES
    assert type(wire.decode_failure(wire.decode_answer(memoryview(packet)))) is ConflictError


@pytest.mark.parametrize(
    ("loss", "kind"),
    [
        (None, Kind.FAILED),
        (Action.REINITIALISE, Kind.FAILED_TOKEN_LOST),
        (Action.HSM_DOWN, Kind.FAILED_HSM_DOWN),
    ],
)
def test_an_error_keeps_its_class_and_its_words(loss: Action | None, kind: Kind) -> None:
    packet = wire.encode_failure(5, HsmUnavailableError("cause", hint="hint"), loss)
    answer = wire.decode_answer(memoryview(packet))
    error = wire.decode_failure(answer)
    assert (answer.number, answer.kind) == (5, kind)
    assert type(error) is HsmUnavailableError
    assert (str(error), error.hint) == ("cause", "hint")


def test_an_unknown_class_of_error_is_the_base() -> None:
    answer = wire.Answer(1, Kind.FAILED, [b'["json", "cause", ""]'])
    assert type(wire.decode_failure(answer)) is HsmPluginError
