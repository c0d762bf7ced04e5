"""Metrics, alert rules, dashboard and issuance log of a bridge that serves, breaks and goes on."""

import json
import re
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import grpc
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from istiod_ca_bridge.errors import TamperedLogError
from istiod_ca_bridge.issuance_verify import verify
from istiod_ca_bridge.metrics_pool import PoolMetrics
from istiod_ca_bridge.signer import key_der
from tests.integration.istiod_ca_bridge import harness
from tests.integration.istiod_ca_bridge.conftest import Mesh, token_settings
from tests.support import pki
from tests.support.figures import figures
from tests.support.plugin import program
from tests.support.ports import free_port

_MONITORING = Path(__file__).parents[3] / "deploy" / "monitoring"
_METRIC = re.compile(r"\b(?:citadel_server|istiod_ca_bridge|process)_\w+")


@dataclass(frozen=True, slots=True)
class Observed:
    """A serving bridge and where it tells of itself."""

    mesh: Mesh
    bridge: harness.Bridge
    tokens: harness.TokenIssuer
    log: Path
    metrics: str
    blocklist: Path

    def samples(self) -> dict[str, float]:
        return figures(self.metrics)

    def sample(self, name: str) -> float:
        return self.samples()[name]


@pytest.fixture(scope="module")
def observed(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    folder = tmp_path_factory.mktemp("bridge")
    tokens = harness.token_issuer()
    metrics = f"127.0.0.1:{free_port()}"
    blocklist = folder / "blocked-keys"
    blocklist.write_text("# none\n")
    settings = token_settings(folder, tokens) | {
        "METRICS_LISTEN": metrics,
        "ISSUANCE_LOG": str(folder / "issued.log"),
        "ISSUANCE_LOG_CHECKPOINT": "2",
        "KEY_BLOCKLIST_FILE": str(blocklist),
        "TRUST_DOMAIN_ALIASES": "old.test",
    }
    with harness.running_bridge(folder, mesh.plugin.socket, settings) as bridge:
        site = Observed(mesh, bridge, tokens, folder / "issued.log", metrics, blocklist)
        bridge.await_log(harness.WAIT_LINE)
        assert site.sample('istiod_ca_bridge_lifecycle_state{state="waiting"}') == 1
        assert site.sample("istiod_ca_bridge_ready") == 0
        harness.bring_to_serving(bridge, mesh.plugin, mesh.root)
        yield site


def verified(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program("istiod-ca-bridge"), "log", "verify", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def chain_file(observed: Observed) -> Path:
    return observed.bridge.secrets / "istio-ca-cert" / "cert-chain.pem"


def entries(observed: Observed) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in observed.log.read_text().splitlines()]
    return [line for line in lines if line["kind"] == "issued"]


def refused(observed: Observed, csr: str) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        harness.create_certificate(observed.bridge, token=observed.tokens.token(), csr=csr)
    return caught.value


def test_each_kind_of_answer_is_counted_under_istiod_s_names(observed: Observed) -> None:
    before = observed.samples()
    harness.create_certificate(observed.bridge, token=observed.tokens.token())
    refused(observed, "garbage")
    for wrong in ({"token": "x"}, {"token": observed.tokens.token(), "seconds": 1 << 40}):
        with pytest.raises(grpc.RpcError):
            harness.create_certificate(observed.bridge, **wrong)

    after = observed.samples()

    def grown(name: str) -> float:
        return after[name] - before[name]

    assert grown("citadel_server_csr_count") == 4
    assert grown("citadel_server_success_cert_issuance_count") == 1
    assert grown("citadel_server_authentication_failure_count") == 1
    assert grown("citadel_server_csr_parsing_err_count") == 1
    assert grown('citadel_server_csr_sign_err_count{error="CSR_ERROR"}') == 1
    assert grown('citadel_server_csr_sign_err_count{error="TTL_ERROR"}') == 1
    assert grown("istiod_ca_bridge_signature_seconds_count") >= 1
    assert after['istiod_ca_bridge_requests_total{by="token",status="OK"}'] >= 1
    assert after['istiod_ca_bridge_lifecycle_state{state="serving"}'] == 1
    assert after["istiod_ca_bridge_ready"] == 1
    assert after["istiod_ca_bridge_leader"] == 1


def test_the_expiries_told_are_those_of_what_is_served(observed: Observed) -> None:
    ca, root = x509.load_pem_x509_certificates(chain_file(observed).read_bytes())
    found = observed.samples()

    ends = ca.not_valid_after_utc.timestamp()
    assert found["citadel_server_cert_chain_expiry_timestamp"] == ends
    assert (
        found["citadel_server_root_cert_expiry_timestamp"] == root.not_valid_after_utc.timestamp()
    )
    assert found["citadel_server_cert_chain_expiry_seconds"] > 29 * 86400
    server = 'istiod_ca_bridge_certificate_expiry_timestamp_seconds{certificate="server"}'
    assert 0 < found[server] <= ends


def test_each_metric_of_the_alert_rules_and_the_dashboard_exists(observed: Observed) -> None:
    harness.create_certificate(observed.bridge, token=observed.tokens.token())
    there = {name.partition("{")[0] for name in observed.samples()}
    of_workers = set(_METRIC.findall(PoolMetrics(2).exposition()))
    groups = yaml.safe_load((_MONITORING / "istiod-ca-bridge.rules.yaml").read_text())["groups"]
    rules = [rule["expr"] for group in groups for rule in group["rules"]]
    panels = json.loads((_MONITORING / "dashboard.json").read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel.get("targets", [])]

    assert all(_METRIC.findall(expression) for expression in rules)
    for expression in (*rules, *queries):
        assert set(_METRIC.findall(expression)) <= there | of_workers, expression
    drawn = {name for query in queries for name in _METRIC.findall(query)}
    assert {it for it in there if it.startswith("istiod_ca_bridge")} - drawn <= {
        f"istiod_ca_bridge_{name}_{part}"
        for name in (
            "request_seconds",
            "signature_seconds",
            "queue_seconds",
            "issuance_log_commit_seconds",
        )
        for part in ("sum", "count")
    }


def test_nothing_but_the_figures_is_served_beside_them(observed: Observed) -> None:
    for path, status in (("/", 404), ("/metrics/../secrets", 404)):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"http://{observed.metrics}{path}", timeout=5)
        assert caught.value.code == status
    host, _, port = observed.metrics.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(b"POST /metrics HTTP/1.1\r\n\r\n")
        assert connection.recv(64).startswith(b"HTTP/1.1 405 ")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(b"GET /" + b"x" * (64 << 10))
        assert connection.recv(64) == b""


def test_a_certificate_is_in_the_log_before_it_is_in_the_caller_s_hands(
    observed: Observed,
) -> None:
    for _ in range(3):
        workload = harness.create_certificate(observed.bridge, token=observed.tokens.token())
        entry = entries(observed)[-1]
        assert entry["serial"] == f"{workload.leaf.serial_number:x}"
        assert entry["identity"] == harness.CALLER
        assert (entry["pod"], entry["pod_uid"], entry["by"]) == ("cart-0", "u2", "token")
        spki = key_der(workload.key.public_key())
        assert entry["key_sha256"] == sha256(spki).hexdigest()
    assert any(entry["by"] == "ca" for entry in entries(observed))


def test_the_log_is_verified_against_the_ca_s_certificate_and_a_changed_one_is_not(
    observed: Observed, tmp_path: Path
) -> None:
    for _ in range(3):
        harness.create_certificate(observed.bridge, token=observed.tokens.token())
    copy = tmp_path / "issued.log"
    shutil.copy(observed.log, copy)

    intact = verified("--ca", chain_file(observed), copy)
    assert (intact.returncode, intact.stdout.startswith("intact: ")) == (0, True), intact.stderr
    lines = copy.read_text().splitlines(keepends=True)
    at = next(n for n, line in enumerate(lines) if harness.CALLER in line)
    lines[at] = lines[at].replace("/sa/cart", "/sa/bank")
    copy.write_text("".join(lines))
    changed = verified("--ca", chain_file(observed), copy)
    assert changed.returncode == 1
    assert f"{copy}:{at + 2}: line {at + 1} or this one was changed" in changed.stderr
    (tmp_path / "other.pem").write_bytes(pki.root().pem)
    with pytest.raises(TamperedLogError, match="by a key of none of the CA's certificates"):
        verify([observed.log], tmp_path / "other.pem")


def test_a_bridge_that_was_killed_goes_on_with_its_log_and_notes_the_torn_end(
    observed: Observed,
) -> None:
    bridge = observed.bridge
    harness.create_certificate(bridge, token=observed.tokens.token())
    bridge.kill()
    before = entries(observed)
    with observed.log.open("ab") as file:
        file.write(b'{"seq":99999,"ti')
    with harness.running_bridge(
        bridge.folder, observed.mesh.plugin.socket, bridge.environment
    ) as again:
        again.await_serving()
        harness.create_certificate(again, token=observed.tokens.token())
        assert again.stop() == 0

    assert "issuance_log.recovered dropped_bytes=16" in bridge.log
    assert verify([observed.log], chain_file(observed)).recovered == 1
    assert entries(observed)[: len(before)] == before
    bridge.process = harness.start_bridge(
        bridge.folder, observed.mesh.plugin.socket, bridge.environment
    ).process
    bridge.await_serving()


def test_a_key_that_is_put_on_the_list_gets_no_certificate_any_more(observed: Observed) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    csr = harness.csr_of(key)
    harness.create_certificate(observed.bridge, token=observed.tokens.token(), csr=csr)
    loaded = observed.bridge.log.count("key_blocklist.loaded")
    observed.blocklist.write_text(sha256(key_der(key.public_key())).hexdigest())
    observed.bridge.await_log("key_blocklist.loaded", loaded + 1)

    assert "list of keys to refuse" in str(refused(observed, csr))
    harness.create_certificate(observed.bridge, token=observed.tokens.token())


def test_a_key_with_a_small_exponent_gets_no_certificate(observed: Observed) -> None:
    weak = rsa.generate_private_key(3, 2048)

    assert "weak" in str(refused(observed, harness.csr_of(weak)))


def test_a_certificate_of_an_alias_is_renewed_into_the_trust_domain(observed: Observed) -> None:
    def holder_of(uri: str) -> harness.Workload:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
        issued = pki.issue("w", observed.mesh.root, extensions=((names, True),))
        assert isinstance(issued.key, ec.EllipticCurvePrivateKey)
        return harness.Workload(issued.key, (issued.pem.decode(), observed.mesh.root.pem.decode()))

    renewed = harness.create_certificate(
        observed.bridge, client=holder_of("spiffe://old.test/ns/shop/sa/cart")
    )

    names = renewed.leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [harness.CALLER]
    with pytest.raises(grpc.RpcError):
        harness.create_certificate(
            observed.bridge, client=holder_of("spiffe://else.test/ns/shop/sa/cart")
        )
