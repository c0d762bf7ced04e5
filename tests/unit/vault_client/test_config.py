"""The settings: what is understood, and what is refused with a hint."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vault_client.config import load, load_logging, mount_of, parse_duration, parse_policy
from vault_client.errors import Cause, ConfigError
from vault_client.policy import Policy
from vault_client.settings import (
    AppRoleLogin,
    CaConfigMap,
    CaFile,
    HttpAddress,
    KubernetesLogin,
    TokenFileLogin,
    TrialMode,
)

GUIDE = {
    "VAULT_ADDR": "https://vault.example.com:8200/",
    "VAULT_AUTH_PATH": "auth/asm-c1/hsm/login",
    "VAULT_ROLE": "istiod",
    "VAULT_KV_PATH": "asm-c1/istiod",
    "OUTPUT_DIR": "/var/run/hsm-credential",
}


def mistakes(**more: str) -> list[str]:
    """Return the mistakes that are reported for the guide's settings with some replaced."""
    with pytest.raises(ConfigError) as caught:
        load(GUIDE | more)
    text = f"error: {caught.value}\nhint: {caught.value.hint}"
    lines = text.splitlines()
    assert [line.split(":")[0] for line in lines] == ["error", "hint"] * (len(lines) // 2)
    return [line.removeprefix("error: ") for line in lines[::2]]


def test_the_guides_settings_are_understood_with_its_defaults() -> None:
    config = load(GUIDE)
    assert config.address == "https://vault.example.com:8200"
    assert isinstance(config.login, KubernetesLogin)
    assert config.login.mount == "asm-c1/hsm"
    assert config.names.by_key() == {
        "clientcert": "clientcert.pem",
        "clientkey": "clientkey.pem",
        "servercert": "servercert.pem",
        "PIN": "pin",
    }
    assert config.permissions.file_mode == 0o400
    assert config.http == HttpAddress("127.0.0.1", 8281)
    assert config.policies[Cause.SEALED] == Policy()
    assert config.policies[Cause.DELETED] == Policy(900)
    assert not config.allow_disk
    assert not config.wipe_on_exit


def test_every_setting_that_is_missing_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load({})
    text = f"{caught.value} {caught.value.hint}"
    for name in ("VAULT_ADDR", "VAULT_ROLE", "VAULT_KV_PATH", "OUTPUT_DIR"):
        assert f"{name} is not set" in text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("VAULT_ADDR", "vault:8200"),
        ("VAULT_ADDR", "http://vault:8200"),
        ("VAULT_ADDR", "https://user:secret@vault:8200"),
        ("VAULT_ADDR", "https://:secret@vault:8200"),
        ("VAULT_ADDR", "https://vault:port"),
        ("VAULT_AUTH_METHOD", "ldap"),
        ("VAULT_AUTH_PATH", "/auth/"),
        ("VAULT_KV_PATH", "istiod"),
        ("POLL_INTERVAL", "5"),
        ("POLL_INTERVAL", "0s"),
        ("OUTPUT_MODE", "0644"),
        ("OUTPUT_OWNER", "istio:istio"),
        ("PIN_FILENAME", "../pin"),
        ("PIN_FILENAME", ".pin"),
        ("PIN_FILENAME", "manifest.json"),
        ("PIN_FILENAME", "clientkey.pem"),
        ("EXTRA_FILES", "chrystoki"),
        ("EXTRA_FILES", "PIN=pin2"),
        ("ON_FORBIDDEN", "panic"),
        ("ON_EXIT", "grace=1m"),
        ("HEALTH_ADDR", "8281"),
        ("HEALTH_ADDR", "localhost:99999"),
        ("VAULT_CLIENT_ALLOW_DISK", "maybe"),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_name(name: str, value: str) -> None:
    found = mistakes(**{name: value})
    assert len(found) >= 1
    assert name in found[0] or "file name" in found[0]


def test_an_address_with_a_password_in_it_is_refused_without_repeating_it() -> None:
    assert "secret" not in str(mistakes(VAULT_ADDR="https://user:secret@vault:8200"))


def test_two_sources_for_the_ca_are_one_too_many() -> None:
    found = mistakes(
        VAULT_CACERT="/ca.pem", VAULT_AUTH_CERT_CM="vault-ca", KUBERNETES_SERVICE_HOST="10.0.0.1"
    )
    assert found == ["both VAULT_CACERT and VAULT_AUTH_CERT_CM are set"]


def test_a_config_map_outside_a_pod_is_refused() -> None:
    assert "KUBERNETES_SERVICE_HOST" in mistakes(VAULT_AUTH_CERT_CM="vault-ca")[0]


@pytest.mark.parametrize(
    ("value", "name", "namespace"),
    [("vault-ca", "vault-ca", None), ("vault-ca.istio-system", "vault-ca", "istio-system")],
)
def test_a_config_map_is_named_with_or_without_its_namespace(
    value: str, name: str, namespace: str | None
) -> None:
    pod = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "6443"}
    ca = load(GUIDE | pod | {"VAULT_AUTH_CERT_CM": value}).ca
    assert isinstance(ca, CaConfigMap)
    assert (ca.name, ca.namespace, ca.api_server) == (name, namespace, "[fd00::1]:6443")


def test_a_ca_file_is_taken() -> None:
    assert load(GUIDE | {"VAULT_CACERT": "/ca.pem"}).ca == CaFile(Path("/ca.pem"))


def test_an_approle_needs_its_two_files_and_no_role() -> None:
    settings = {
        "VAULT_AUTH_METHOD": "approle",
        "VAULT_ROLE": "",
        "VAULT_ROLE_ID_PATH": "/r",
        "VAULT_SECRET_ID_PATH": "/s",
    }
    login = load(GUIDE | settings).login
    assert login == AppRoleLogin("asm-c1/hsm", Path("/r"), Path("/s"))
    assert "VAULT_SECRET_ID_PATH is not set" in mistakes(**settings | {"VAULT_SECRET_ID_PATH": ""})


def test_a_token_file_needs_nothing_but_its_path() -> None:
    settings = {"VAULT_AUTH_METHOD": "token", "VAULT_ROLE": "", "VAULT_TOKEN_PATH": "/t"}
    assert load(GUIDE | settings).login == TokenFileLogin(Path("/t"))


@pytest.mark.parametrize(
    "path", ["auth/asm-c1/hsm/login", "asm-c1/hsm", "/v1/auth/asm-c1/hsm/login/", "asm-c1/hsm/"]
)
def test_an_auth_path_is_understood_however_it_is_written(path: str) -> None:
    assert mount_of(path) == "asm-c1/hsm"


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("30s", 30), ("1m30s", 90), ("1.5h", 5400)]
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "5", "-5s", "5 s", "0s", "5s!", "5d"])
def test_what_is_no_duration_is_none(text: str) -> None:
    assert parse_duration(text) is None


@given(st.text())
def test_no_text_breaks_the_parsers(text: str) -> None:
    parse_duration(text)
    parse_policy(text)
    mount_of(text)


def test_policies_are_read() -> None:
    assert parse_policy("keep") == Policy(None)
    assert parse_policy("wipe") == Policy(0)
    assert parse_policy("grace=15m") == Policy(900)
    assert parse_policy("grace") is None
    assert parse_policy("grace=") is None


def test_health_can_be_switched_off() -> None:
    assert load(GUIDE | {"HEALTH_ADDR": "off"}).http is None


def test_an_unknown_way_to_log_falls_back_to_text_at_info() -> None:
    config = load_logging({"LOG_FORMAT": "xml", "LOG_LEVEL": "loud"})
    assert (config.form, config.level) == ("text", "INFO")
    config = load_logging({"LOG_FORMAT": "json", "LOG_LEVEL": "debug"})
    assert (config.form, config.level) == ("json", "DEBUG")


def test_the_plugin_tries_new_sets_unless_told_otherwise() -> None:
    assert load(GUIDE).acknowledgement is None
    plugin = load(GUIDE | {"HSM_PLUGIN_SOCKET": "/run/.sock"}).acknowledgement
    assert plugin is not None
    assert plugin.trial is TrialMode.AUTO
    off = load(GUIDE | {"HSM_PLUGIN_SOCKET": "/run/.sock", "TRIAL_LOGIN": "off"}).acknowledgement
    assert off is not None
    assert off.trial is TrialMode.OFF


def test_a_trial_without_a_plugin_and_an_endless_wait_for_it_are_mistakes() -> None:
    assert mistakes(TRIAL_LOGIN="required", HSM_PLUGIN_TIMEOUT="31s") == [
        "HSM_PLUGIN_TIMEOUT is more than 30s",
        "TRIAL_LOGIN is required, and HSM_PLUGIN_SOCKET is not set",
    ]
    assert mistakes(TRIAL_LOGIN="maybe") == ["TRIAL_LOGIN is 'maybe'"]
