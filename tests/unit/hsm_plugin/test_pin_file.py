"""The PIN file holds one line, and nothing of it is kept or shown."""

from pathlib import Path

import pytest

from hsm_plugin.errors import PinRefusedError
from hsm_plugin.pin_file import read_pin


@pytest.mark.parametrize(
    ("content", "pin"),
    [
        (b"1234", "1234"),
        (b"1234\n", "1234"),
        (b"1234\r\n", "1234"),
        (b" 12 34 ", " 12 34 "),
        ("geheim-ü".encode(), "geheim-ü"),
        (b"9" * 256, "9" * 256),
        (b"9" * 256 + b"\n", "9" * 256),
    ],
)
def test_a_pin_is_read_without_its_final_newline(tmp_path: Path, content: bytes, pin: str) -> None:
    path = tmp_path / "pin"
    path.write_bytes(content)
    assert read_pin(path) == pin


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "does not hold one line"),
        (b"\n", "does not hold one line"),
        (b"canary\ncanary\n", "does not hold one line"),
        (b"canary\n\n", "does not hold one line"),
        (b"canary\0", "does not hold one line"),
        (b"9" * 257, "does not hold one line"),
        (b"9" * 100_000, "does not hold one line"),
        (b"canary\xff", "is not UTF-8"),
    ],
)
def test_what_is_not_one_line_is_refused_and_not_shown(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "pin"
    path.write_bytes(content)
    with pytest.raises(PinRefusedError, match=reason) as caught:
        read_pin(path)
    assert "canary" not in f"{caught.value} {caught.value.hint}"


def test_a_missing_file_is_named_with_its_setting(tmp_path: Path) -> None:
    with pytest.raises(PinRefusedError, match="No such file or directory") as caught:
        read_pin(tmp_path / "pin")
    assert "P11_PIN_FILE" in caught.value.hint


def test_a_folder_is_no_pin_file(tmp_path: Path) -> None:
    with pytest.raises(PinRefusedError, match="Is a directory"):
        read_pin(tmp_path)
