"""Which folder a trial reads, and what its caller is told."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from hsm_plugin.control_service import Control
from hsm_plugin.errors import BadRequestError, ConflictError, PinRefusedError
from istio_hsm_proto import control_v1_pb2 as pb

STAGED = "..2026_01_31_12_00_00.5f3a9c01"
Verdict = pb.TrialCredentialsResponse


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A volume with a set in place and one that is staged, and a PIN file outside of it."""
    folder = tmp_path / "volume"
    for generation in ("..first", STAGED):
        (folder / generation).mkdir(parents=True)
        (folder / generation / "pin").write_text("1111")
    (folder / "..data").symlink_to("..first")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "pin").write_text("2222")
    return folder


def control(volume: Path, try_pin: Callable[[Path], Awaitable[bool]]) -> Control:
    async def reload() -> None:
        raise AssertionError("a trial reloads nothing")

    return Control(volume / "pin", reload, try_pin)


async def trial(volume: Path, generation: str, *, tried: bool = True) -> tuple[int, list[Path]]:
    """Return the verdict, and the PIN files that were tried."""
    files: list[Path] = []

    async def try_pin(pin_file: Path) -> bool:
        files.append(pin_file)
        return tried

    request = pb.TrialCredentialsRequest(generation=generation)
    return (await control(volume, try_pin).trial_credentials(request)).verdict, files


async def test_the_pin_file_of_the_folder_that_is_named_is_tried(volume: Path) -> None:
    assert await trial(volume, STAGED) == (Verdict.ACCEPTED, [volume / STAGED / "pin"])


async def test_the_pin_in_use_is_told_from_one_that_was_tried(volume: Path) -> None:
    assert (await trial(volume, STAGED, tried=False))[0] == Verdict.IN_USE


async def test_a_refusal_is_an_answer_with_its_reason(volume: Path) -> None:
    async def refuse(_: Path) -> bool:
        raise PinRefusedError("the token refused the PIN", hint="write another")

    request = pb.TrialCredentialsRequest(generation=STAGED)
    response = await control(volume, refuse).trial_credentials(request)
    assert (response.verdict, response.reason) == (Verdict.REFUSED, "the token refused the PIN")


@pytest.mark.parametrize(
    "generation",
    [
        *("", ".", "..", "pin", "first", "/etc", "../elsewhere", "../volume/..first"),
        *("..first/../../elsewhere", "..first/", "..first\n", "..first\0", "..\u0661"),
        "..x" * 100,
    ],
)
async def test_a_name_that_is_none_of_a_sets_folder_is_refused_unread(
    volume: Path, generation: str
) -> None:
    with pytest.raises(BadRequestError):
        await trial(volume, generation)


@pytest.mark.parametrize("name", ["..data", "..linked", "..missing", "..a-file", "..pin-is-link"])
async def test_a_folder_that_is_not_there_or_is_a_link_is_refused(volume: Path, name: str) -> None:
    (volume / "..linked").symlink_to(volume.parent / "elsewhere")
    (volume / "..a-file").write_text("1111")
    (volume / "..pin-is-link").mkdir()
    (volume / "..pin-is-link" / "pin").symlink_to(volume.parent / "elsewhere" / "pin")
    with pytest.raises(ConflictError, match="sees no pin"):
        await trial(volume, name)
