import json
from pathlib import Path

import pytest

from istio_hsm_installer.cli import run


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "istio-hsm.yaml"
    assert run(["config", "init", str(path)]) == 0
    return path


def test_what_init_writes_validates(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(["config", "validate", "-f", str(config), "-o", "json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["service_account"] == "istio-system/istiod-service-account"
    assert shown["policy"] == "asm-c1-hsm-policy"


def test_init_overwrites_nothing(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text("mine")
    assert run(["config", "init", str(config)]) == 1
    assert config.read_text() == "mine"
    assert "exists" in capsys.readouterr().err


def test_each_fault_is_a_pair_of_lines(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = config.read_text().replace("suffix: c1", "suffix: C1").replace("https://v", "http://v")
    config.write_text(text)
    capsys.readouterr()
    assert run(["config", "validate", "-f", str(config)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["error", "hint", "error", "hint"]


@pytest.mark.parametrize("text", ["a: [", "- a", "a: !!python/object:os.system x", "\x00"])
def test_what_is_no_yaml_mapping_is_told(
    config: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text(text)
    capsys.readouterr()
    assert run(["config", "validate", "-f", str(config)]) == 1
    assert capsys.readouterr().err.startswith(f"error: {config}")


def test_the_schema_is_one_json_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "istio-hsm configuration"


def test_the_istioctl_command_is_shown_without_running_it(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert run(["istioctl", "-f", str(config)]) == 0
    assert "--set values.hsm.enabled=true" in capsys.readouterr().out


def test_helm_values_are_for_upstream_only(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["values", "-f", str(config)]) == 1
    upstream = "  flavour: upstream\n  version: 1.28.0\n  # flavour"
    config.write_text(config.read_text().replace("  # flavour", upstream))
    capsys.readouterr()
    assert run(["values", "-f", str(config)]) == 0
    assert "restartPolicy: Always" in capsys.readouterr().out


def test_no_cluster_is_an_error_and_no_traceback(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    missing = str(config.parent / "nowhere")
    assert run(["plan", "-f", str(config), "--only", "kubernetes", "--kubeconfig", missing]) == 1
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: no cluster to talk to")
    assert "--kubeconfig" in hint


def test_undo_asks_first(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("typer.confirm", lambda *_, **__: False)
    assert run(["undo", "-f", str(config)]) == 1


def test_there_is_no_terminal_to_ask_for_a_token_on(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("VAULT_TOKEN_FILE", raising=False)
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    capsys.readouterr()
    assert run(["plan", "-f", str(config), "--only", "vault"]) == 1
    error, hint = capsys.readouterr().err.splitlines()
    assert error == "error: there is no terminal to ask for the Vault token on"
    assert "VAULT_TOKEN_FILE" in hint


def test_colour_is_left_out_where_it_is_not_wanted(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    capsys.readouterr()
    run(["config", "validate", "-f", str(config)])
    assert "\x1b[3" not in capsys.readouterr().out


def test_a_preflight_without_a_cluster_does_not_pretend_to_have_looked(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(config.parent / "nowhere")
    capsys.readouterr()
    assert run(["check", "-f", str(config), "--kubeconfig", missing, "-o", "json"]) == 79
    shown = json.loads(capsys.readouterr().out)
    assert shown["skipped"] == ["services", "rights", "conflicts", "hsm", "clock"]
    assert "no cluster to talk to" in str(shown["findings"])
    run(["check", "-f", str(config), "--kubeconfig", missing])
    assert "? rights: not looked at" in capsys.readouterr().out
