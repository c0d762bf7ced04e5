"""The command line refuses what it must not take, in words that help."""

import argparse
from pathlib import Path

import pytest

from hsm_plugin import durations
from hsm_plugin.cli import run


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("10s", 10.0), ("2m", 120.0), ("24h", 86_400.0), ("7", 7.0), ("0", 0.0)],
)
def test_a_duration_is_read_in_its_unit(text: str, seconds: float) -> None:
    assert durations.seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1s", "1d", "1.5s", "1 s", "9999999", "nan", "1s\n"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a duration"):
        durations.seconds(text)


@pytest.mark.parametrize(
    ("arguments", "cause", "hint"),
    [
        (["--p11-pin", "canary"], "would show the PIN to every process", "P11_PIN_FILE"),
        (["--p11-slot", "0"], "slot ids change", "P11_TOKEN"),
        (["--ca-id", "canary"], "every root that is in the token is trusted", "import-ca"),
    ],
)
def test_a_dangerous_flag_of_the_reference_is_refused_with_the_way_out(
    arguments: list[str], cause: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["serve", *arguments]) == 2
    error, advice = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert cause in error
    assert advice.startswith("hint: ")
    assert hint in advice
    assert "canary" not in error + advice


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["--allow-uid", "root"], "--allow-uid"),
        (["--disable-socket"], "--enable-server"),
        (["--enable-server"], "--tls-allow is not set"),
        (["--auto-create"], "--auto-create needs --kek-id"),
    ],
)
def test_a_way_in_that_cannot_be_is_refused(
    arguments: list[str], fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "module.so").touch()
    settings = ["--socket", str(tmp_path / "s"), "--p11-lib", str(tmp_path / "module.so")]
    settings += ["--p11-label", "mesh", "--p11-pin-file", "/run/pin"]
    assert run(["serve", *settings, *arguments]) == 2
    assert fault in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["unknown"],
        ["import-ca"],
        ["decrypt-csr"],
        ["verify-cert"],
        ["test"],
        ["generate-kek", "--timeout", "soon"],
        ["generate-kek", "--output", "yaml"],
        ["serve", "--algorithm", "des"],
        ["serve", "--sessions", "many"],
        ["serve", "--port", "https"],
        ["serve", "--output", "yaml"],
    ],
)
def test_a_wrong_command_line_exits_2_with_the_usage(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(arguments)
    assert caught.value.code == 2
    assert "usage: hsm-plugin" in capsys.readouterr().err


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.strip()
