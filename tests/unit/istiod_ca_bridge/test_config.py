from datetime import timedelta
from pathlib import Path

import pytest
import yaml

from istiod_ca_bridge.ca_key import KeyMode
from istiod_ca_bridge.config import read_config
from istiod_ca_bridge.errors import ConfigError
from istiod_ca_bridge.issuance_log import IssuanceLogSettings
from istiod_ca_bridge.mode import BridgeMode
from istiod_ca_bridge.mode_settings import PlugInSettings
from istiod_ca_bridge.setting_values import Address
from istiod_ca_bridge.signer import KeyAlgorithm

_DEPLOY = Path(__file__).parents[3] / "deploy"
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


def test_the_manifest_gives_a_pod_the_time_to_leave_and_its_sidecars_ten_seconds_more() -> None:
    config = read_config(LEAST)
    manifest = yaml.safe_load((_DEPLOY / "kustomize/ca-server/deployment.yaml").read_text())

    given = manifest["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert config.drain_delay > timedelta(0)
    assert given >= (config.drain_delay + config.drain).total_seconds() + 10


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
        ("TRUST_DOMAIN_ALIASES", "old.test,Old"),
        ("CA_MAX_WAITING", "0"),
        ("METRICS_LISTEN", "9000"),
        ("WORKLOAD_CERT_TTL_POLICY", "cut"),
        ("WORKLOAD_CERT_TTL_JITTER", "51%"),
        ("WORKLOAD_CERT_TTL_JITTER", "0.05"),
        ("ISSUANCE_LOG", "/nowhere/at/all/issued.log"),
        ("ISSUANCE_LOG_MAX_BYTES", "1"),
        ("ISSUANCE_LOG_CHECKPOINT", "0"),
        ("ISSUANCE_LOG_WHEN_FAILING", "ignore"),
        ("CA_CRL", "yes"),
        ("CRL_FILE", "ca-crl.pem"),
        ("CA_TRUSTED_NODE_ACCOUNTS", "ztunnel"),
        ("CA_TRUSTED_NODE_ACCOUNTS", "a/b/c"),
    ],
)
def test_a_setting_that_cannot_work_is_named(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=name):
        read_config(LEAST | {name: value})


def test_what_is_issued_and_how_is_read(tmp_path: Path) -> None:
    config = read_config(
        LEAST
        | {
            "WORKLOAD_CERT_TTL_POLICY": "clamp",
            "WORKLOAD_CERT_TTL_JITTER": "2.5%",
            "TRUST_DOMAIN_ALIASES": "old.test, older.test",
            "CA_TRUSTED_NODE_ACCOUNTS": "istio-system/ztunnel,edge/z.tunnel",
            "ISSUANCE_LOG": str(tmp_path / "issued.log"),
            "ISSUANCE_LOG_WHEN_FAILING": "issue",
        }
    )

    assert (config.ttl.clamp, config.ttl.jitter) == (True, 0.025)
    assert config.trust_domain_aliases == {"old.test", "older.test"}
    assert config.node_agents == {("istio-system", "ztunnel"), ("edge", "z.tunnel")}
    assert config.issuance_log == IssuanceLogSettings(
        tmp_path / "issued.log", 100 << 20, 1000, issue_without=True
    )
    assert read_config(LEAST).issuance_log is None
    assert not read_config(LEAST).node_agents


def test_settings_that_cannot_go_together_are_named() -> None:
    with pytest.raises(ConfigError, match="sealed needs an RSA"):
        read_config(LEAST | {"CA_KEY_MODE": "sealed", "CA_KEY_ALGORITHM": "ecdsa-p256"})
    with pytest.raises(ConfigError, match="TOKEN_ISSUER"):
        read_config(LEAST | {"JWKS_FILE": "/x"})
    with pytest.raises(ConfigError, match="REMOTE_CLUSTERS"):
        read_config(LEAST | {"REMOTE_CLUSTERS": "true", "TOKEN_REVIEW": "off"})
    with pytest.raises(ConfigError, match="CA_TRUSTED_NODE_ACCOUNTS"):
        read_config(LEAST | DIRECTORY | {"CA_TRUSTED_NODE_ACCOUNTS": "istio-system/ztunnel"})
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


CSR_SIGNER = LEAST | {
    "BRIDGE_MODE": "csr-signer",
    "CERT_SIGNER_DOMAIN": "mesh.example.com",
    "CERT_SIGNER_NAMES": "hsm, other",
    "HEALTH_LISTEN": "127.0.0.1:1",
}
SEALED = LEAST | {
    "BRIDGE_MODE": "sealed",
    "CA_PLUG_IN_DIR": "/run/cacerts",
    "HEALTH_LISTEN": "127.0.0.1:1",
}


def test_by_default_agents_come_to_the_bridge_and_no_mode_has_settings_of_another() -> None:
    config = read_config(LEAST)

    assert config.mode is BridgeMode.CA_SERVER
    assert (config.plug_in, config.csr) == (None, None)
    assert (config.publish_root_cert, config.issue_istiod_tls, config.review_tokens) == (True,) * 3


def test_a_csr_signer_trusts_the_istiods_of_its_namespace_and_revisions() -> None:
    config = read_config(
        CSR_SIGNER
        | {"POD_NAMESPACE": "mesh", "ISTIO_REVISIONS": "1-32", "CSR_DNS_NAMES": "xds.example.com"}
    )

    assert config.csr is not None
    assert config.csr.signers == ("mesh.example.com/hsm", "mesh.example.com/other")
    assert config.csr.requestors == {
        "system:serviceaccount:mesh:istiod",
        "system:serviceaccount:mesh:istiod-1-32",
    }
    assert config.csr.dns_names == {
        *("istiod.mesh.svc", "istiod-1-32.mesh.svc", "istiod-remote.mesh.svc"),
        *("istio-pilot.mesh.svc", "xds.example.com"),
    }
    assert (config.publish_root_cert, config.issue_istiod_tls, config.review_tokens) == (False,) * 3
    assert config.key_mode is KeyMode.RESIDENT


def test_only_named_accounts_are_trusted_when_they_are_named() -> None:
    config = read_config(CSR_SIGNER | {"CSR_REQUESTORS": "a/pilot"})

    assert config.csr is not None
    assert config.csr.requestors == {"system:serviceaccount:a:pilot"}


def test_sealed_and_asm_have_a_sealed_key() -> None:
    sealed, asm = read_config(SEALED), read_config(LEAST | {"BRIDGE_MODE": "asm"})

    assert sealed.plug_in == PlugInSettings(
        Path("/run/cacerts"), allow_disk=False, wipe_on_exit=False
    )
    assert (sealed.key_mode, asm.key_mode) == (KeyMode.SEALED, KeyMode.SEALED)
    assert (sealed.publish_root_cert, asm.publish_root_cert) == (False, True)


@pytest.mark.parametrize(
    ("base", "name", "value"),
    [
        (LEAST, "BRIDGE_MODE", "signer"),
        (LEAST | {"BRIDGE_MODE": "asm"}, "CA_KEY_MODE", "resident"),
        (SEALED, "CA_KEY_MODE", "resident"),
        (SEALED, "HEALTH_LISTEN", ""),
        (SEALED, "CA_PLUG_IN_DIR", ""),
        (SEALED, "CA_PLUG_IN_DIR", "etc/cacerts"),
        (SEALED, "CA_PLUG_IN_AT_EXIT", "shred"),
        (SEALED, "CA_PLUG_IN_ALLOW_DISK", "yes"),
        (CSR_SIGNER, "HEALTH_LISTEN", ""),
        (CSR_SIGNER, "CERT_SIGNER_DOMAIN", ""),
        (CSR_SIGNER, "CERT_SIGNER_DOMAIN", "kubernetes.io"),
        (CSR_SIGNER, "CERT_SIGNER_DOMAIN", "nodomain"),
        (CSR_SIGNER, "CERT_SIGNER_NAMES", ""),
        (CSR_SIGNER, "CERT_SIGNER_NAMES", "a/b"),
        (CSR_SIGNER, "CSR_REQUESTORS", "istiod"),
        (CSR_SIGNER, "CSR_DNS_NAMES", "*.test"),
    ],
)
def test_a_setting_of_a_mode_that_cannot_work_is_named(
    base: dict[str, str], name: str, value: str
) -> None:
    with pytest.raises(ConfigError, match=name):
        read_config(base | {name: value})
