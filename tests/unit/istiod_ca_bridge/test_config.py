from datetime import timedelta
from pathlib import Path

import pytest

from istiod_ca_bridge.ca_key import KeyMode
from istiod_ca_bridge.config import Address, read_config
from istiod_ca_bridge.errors import ConfigError
from istiod_ca_bridge.signer import KeyAlgorithm

LEAST = {"KEY_MANAGEMENT_KEY_ID": "kek"}
DIRECTORY = {"BRIDGE_STORE": "directory", "BRIDGE_STORE_DIR": "."}


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


def test_in_kubernetes_the_api_server_reviews_tokens_unless_there_are_keys() -> None:
    keys = {"JWKS_FILE": "/keys", "TOKEN_ISSUER": "https://issuer.test"}

    assert read_config(LEAST).review_tokens
    assert read_config(LEAST).token_review_cache == timedelta(seconds=10)
    assert not read_config(LEAST | keys).review_tokens
    assert not read_config(LEAST | {"TOKEN_REVIEW": "off"}).review_tokens
    assert not read_config(LEAST | DIRECTORY).review_tokens
    assert read_config(LEAST | {"TOKEN_REVIEW_CACHE": "0"}).token_review_cache == timedelta(0)


@pytest.mark.parametrize(
    "changes",
    [
        {"TOKEN_REVIEW": "yes"},
        {"TOKEN_REVIEW": "kubernetes", "JWKS_FILE": "/keys", "TOKEN_ISSUER": "i"},
        {"TOKEN_REVIEW_CACHE": "61s"},
        {"TOKEN_REVIEW_CACHE": "-1s"},
        {"TOKEN_AUDIENCES": ","},
    ],
)
def test_a_wrong_way_to_review_tokens_is_a_fault(changes: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="TOKEN_"):
        read_config(LEAST | changes)


def test_what_belongs_to_the_cluster_is_done_in_kubernetes_only_and_can_be_switched_off() -> None:
    within, without = read_config(LEAST), read_config(LEAST | DIRECTORY)
    off = read_config(LEAST | {"PUBLISH_ROOT_CERT": "false", "ISTIOD_TLS": "false"})

    assert (within.publish_root_cert, within.issue_istiod_tls) == (True, True)
    assert (without.publish_root_cert, without.issue_istiod_tls) == (False, False)
    assert (off.publish_root_cert, off.issue_istiod_tls) == (False, False)
    named = read_config(LEAST | {"POD_NAMESPACE": "mesh", "ISTIO_REVISIONS": "a, default"})
    assert named.istiod_names == ("istiod.mesh.svc", "istiod-a.mesh.svc")


@pytest.mark.parametrize(
    "changes",
    [
        {"PUBLISH_ROOT_CERT": "no"},
        {"ISTIOD_TLS": "1"},
        {"ISTIO_REVISIONS": "*"},
        DIRECTORY | {"ISTIOD_TLS": "true"},
    ],
)
def test_a_wrong_switch_is_a_fault(changes: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"PUBLISH_ROOT_CERT|ISTIOD_TLS|ISTIO_REVISIONS"):
        read_config(LEAST | changes)
