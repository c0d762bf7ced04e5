from datetime import timedelta
from pathlib import Path

import pytest

from istiod_ca_bridge.config import Address, read_config
from istiod_ca_bridge.errors import ConfigError
from istiod_ca_bridge.lifecycle import KeyMode
from istiod_ca_bridge.signer import KeyAlgorithm

LEAST = {"KEY_MANAGEMENT_KEY_ID": "kek"}


def test_the_defaults_are_those_of_a_pod_of_istiod() -> None:
    config = read_config(LEAST)

    assert config.store_directory is None
    assert config.plugin_socket == Path("/var/run/hsm-socket/.sock")
    assert (config.key_mode, config.key_algorithm) == (KeyMode.RESIDENT, KeyAlgorithm.RSA_2048)
    assert (config.trust_domain, config.namespace) == ("cluster.local", "istio-system")
    assert config.listen == Address("0.0.0.0", 15012)  # noqa: S104 - what is asserted
    assert config.token_audiences == ("istio-ca",)
    assert (config.ttl.default, config.ttl.maximum) == (timedelta(hours=24), timedelta(days=90))


def test_every_setting_is_read() -> None:
    config = read_config(
        LEAST
        | {
            "KEY_MANAGEMENT_ENDPOINT": "unix:///run/x.sock",
            "CA_KEY_ALGORITHM": "ECDSA_P384",
            "CA_LISTEN": "[::1]:443",
            "HEALTH_LISTEN": "127.0.0.1:8080",
            "CA_SERVER_NAMES": "a.test, b.test",
            "TOKEN_AUDIENCES": "istio-ca,x",
            "DEFAULT_WORKLOAD_CERT_TTL": "1h30m",
            "MAX_WORKLOAD_CERT_TTL": "2160h0m0s",
            "LOG_FORMAT": "json",
        }
    )

    assert config.plugin_socket == Path("/run/x.sock")
    assert config.key_algorithm is KeyAlgorithm.ECDSA_P384
    assert str(config.listen) == "[::1]:443"
    assert config.health_listen == Address("127.0.0.1", 8080)
    assert config.server_names == ("a.test", "b.test")
    assert config.token_audiences == ("istio-ca", "x")
    assert config.ttl.default == timedelta(minutes=90)
    assert config.log_format == "json"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("KEY_MANAGEMENT_KEY_ID", ""),
        ("KEY_MANAGEMENT_KEY_ID", "a b"),
        ("KEY_MANAGEMENT_KEY_ID", "k" * 129),
        ("KEY_MANAGEMENT_ENDPOINT", "relative/path"),
        ("BRIDGE_STORE", "etcd"),
        ("BRIDGE_STORE", "directory"),
        ("CA_KEY_MODE", "open"),
        ("CA_KEY_ALGORITHM", "rsa-1024"),
        ("TRUST_DOMAIN", "Cluster.Local"),
        ("POD_NAMESPACE", "Istio_System"),
        ("CA_LISTEN", "15012"),
        ("CA_LISTEN", "host:99999"),
        ("CA_SERVER_NAMES", "*.test"),
        ("CA_MAX_CONNECTIONS", "0"),
        ("HEALTH_LISTEN", "x"),
        ("DEFAULT_WORKLOAD_CERT_TTL", "1d"),
        ("DEFAULT_WORKLOAD_CERT_TTL", "0h"),
        ("MAX_WORKLOAD_CERT_TTL", "1h"),
        ("LOG_FORMAT", "xml"),
    ],
)
def test_a_setting_that_cannot_work_is_named(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=name):
        read_config(LEAST | {name: value})


def test_settings_that_cannot_go_together_are_named() -> None:
    with pytest.raises(ConfigError, match="sealed needs an RSA"):
        read_config(LEAST | {"CA_KEY_MODE": "sealed", "CA_KEY_ALGORITHM": "ecdsa-p256"})
    with pytest.raises(ConfigError, match="TOKEN_ISSUER"):
        read_config(LEAST | {"JWKS_FILE": "/x"})
    with pytest.raises(ConfigError, match="BRIDGE_STORE_DIR"):
        read_config(LEAST | {"BRIDGE_STORE": "directory", "BRIDGE_STORE_DIR": "/nowhere/at/all"})


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        read_config({"CA_KEY_MODE": "open", "LOG_FORMAT": "xml", "CA_LISTEN": "x"})

    for name in ("KEY_MANAGEMENT_KEY_ID", "CA_KEY_MODE", "LOG_FORMAT", "CA_LISTEN"):
        assert name in str(caught.value)
