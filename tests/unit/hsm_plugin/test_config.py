"""Settings are checked at once, and every fault is named in one message."""

import os
from pathlib import Path
from typing import TypedDict, Unpack

import pytest

from hsm_plugin.config import ServeConfig, serve_config
from hsm_plugin.errors import ConfigError
from hsm_plugin.listen_settings import ListenSettings


class Settings(TypedDict, total=False):
    socket: str
    module: str
    token_label: str
    pin_file: str
    state_dir: str
    sessions: int
    queue_limit: int
    drain_seconds: float
    kubernetes_kek_id: str
    kek_id: str
    auto_create: bool
    listen: ListenSettings
    return_seconds: float
    algorithm: str
    key_label: str
    hmac_label: str
    gcm_iv: str
    dek_stock: str


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "module.so").touch()
    return tmp_path


def made(folder: Path, **changed: Unpack[Settings]) -> ServeConfig:
    settings: Settings = {
        "socket": str(folder / ".sock"),
        "module": str(folder / "module.so"),
        "token_label": "mesh",
        "pin_file": "/run/pin",
        "state_dir": "",
        "sessions": 8,
        "queue_limit": 1024,
        "drain_seconds": 5.0,
    }
    return serve_config(**settings | changed)


def test_deks_are_made_ahead_unless_that_is_switched_off(folder: Path) -> None:
    assert made(folder).dek_stock
    assert not made(folder, dek_stock="off").dek_stock


def test_sound_settings_are_taken_as_they_are(folder: Path) -> None:
    config = made(folder)
    assert config.socket == folder / ".sock"
    assert config.token_label == "mesh"
    assert config.pin_file == Path("/run/pin")


def test_attempts_are_remembered_beside_the_socket_unless_told_otherwise(folder: Path) -> None:
    assert made(folder).state_dir == folder
    (folder / "state").mkdir()
    assert made(folder, state_dir=str(folder / "state")).state_dir == folder / "state"


def test_the_pin_file_need_not_be_there_yet(folder: Path) -> None:
    assert made(folder, pin_file=str(folder / "later")).pin_file == folder / "later"


def test_a_relative_socket_is_made_absolute(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert made(folder, socket=".sock").socket == folder / ".sock"


def test_a_disabled_socket_needs_no_folder_when_there_is_one_for_the_state(folder: Path) -> None:
    ways = ListenSettings(unix=False)
    nowhere = "/no/folder/.sock"
    assert made(folder, socket=nowhere, state_dir=str(folder), listen=ways).state_dir == folder
    with pytest.raises(ConfigError, match=r"folder /no/folder .SOCKET. does not exist"):
        made(folder, socket=nowhere, listen=ways)


def test_kubernetes_is_served_only_when_a_kek_is_named(folder: Path) -> None:
    assert made(folder).kubernetes_kek_id == ""
    assert made(folder, kubernetes_kek_id="etcd").kubernetes_kek_id == "etcd"
    assert made(folder, kubernetes_kek_id="pkcs11:id=et%63d").kubernetes_kek_id == "etcd"


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        (Settings(socket=""), r"SOCKET \(--socket\) is not set"),
        (Settings(module=""), r"P11_LIB \(--p11-lib\) is not set"),
        (Settings(token_label=""), r"P11_TOKEN \(--p11-label\) is not set"),
        (Settings(pin_file=""), r"P11_PIN_FILE \(--p11-pin-file\) is not set"),
        (Settings(token_label="a,,b"), r"P11_TOKEN \(--p11-label\): a token's label is empty"),
        (Settings(token_label="pkcs11:slot-id=1"), "names no token"),
        (Settings(token_label="pkcs11:token=a?pin-value=1"), "would show the PIN"),
        (Settings(kubernetes_kek_id="pkcs11:object=x"), "--kms-kek-id: .* has no id"),
        (Settings(algorithm="des"), "--algorithm must be aes-gcm or aes-cbc"),
        (Settings(key_label="k8s-hmac"), "must be two labels"),
        (Settings(gcm_iv="hsm"), "--gcm-iv .P11_GCM_IV. must be caller, token, auto"),
        (Settings(dek_stock="yes"), "--dek-stock .HSM_PLUGIN_DEK_STOCK. must be on or off"),
        (Settings(hmac_label=""), "must be two labels"),
        (Settings(key_label="k8s-kms-plugin-kek"), "must be two labels"),
        (Settings(return_seconds=0.1), "--return-after must be"),
        (Settings(module="/no/module.so"), "/no/module.so .* does not exist"),
        (Settings(module="/"), "module / .* does not exist"),
        (Settings(socket="/no/folder/.sock"), "folder /no/folder .* does not exist"),
        (Settings(socket="/" + "s" * 107), "longer than 107 bytes"),
        (Settings(socket="/" + "ü" * 54), "longer than 107 bytes"),
        (Settings(state_dir="/no/state"), "state folder /no/state .* cannot be written"),
        (Settings(sessions=0), "--sessions must be 1 to 256"),
        (Settings(sessions=257), "--sessions must be 1 to 256"),
        (Settings(kubernetes_kek_id="two words"), "--kms-kek-id: KEK id is not visible ASCII"),
        (Settings(kubernetes_kek_id="k" * 129), "--kms-kek-id: KEK id has 129 bytes"),
        (Settings(kek_id="two words"), "--kek-id: KEK id is not visible ASCII"),
        (Settings(auto_create=True), "--auto-create needs --kek-id"),
        (Settings(queue_limit=0), "--queue-limit must be 1 to 100000"),
        (Settings(queue_limit=100_001), "--queue-limit must be 1 to 100000"),
    ],
)
def test_a_fault_is_named(folder: Path, changed: Settings, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault) as caught:
        made(folder, **changed)
    assert "--help" in caught.value.hint
    assert str(caught.value).count(";") == 0


def test_a_socket_path_of_107_bytes_is_allowed() -> None:
    with pytest.raises(ConfigError) as caught:
        made(Path("/no"), socket="/" + "s" * 106)
    assert "longer than" not in str(caught.value)


def test_all_faults_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        serve_config(
            socket="/no/folder/.sock",
            module="/no/module.so",
            token_label="",
            pin_file="",
            state_dir="/no/state",
            sessions=0,
            queue_limit=0,
            drain_seconds=5.0,
        )
    message = str(caught.value)
    assert len(message.split("; ")) == 7
    for part in (
        "P11_TOKEN",
        "P11_PIN_FILE",
        "P11_LIB",
        "SOCKET",
        "STATE_DIR",
        "queue",
        "sessions",
    ):
        assert part in message


def test_a_state_folder_without_write_permission_is_a_fault(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "state").mkdir(mode=0o500)
    monkeypatch.setattr(os, "access", lambda *_: False)  # as for a user who is not root
    with pytest.raises(ConfigError, match="cannot be written"):
        made(folder, state_dir=str(folder / "state"))


def test_settings_are_frozen(folder: Path) -> None:
    config = made(folder)
    with pytest.raises(AttributeError):
        config.sessions = 1  # type: ignore[misc] # what is refused
