"""/metrics, /healthz and /readyz of a real plugin: what is counted, and what is told of a loss."""

import hashlib
import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from istio_hsm_proto import kms_istio_v1_pb2 as kms
from istio_hsm_proto import signing_v1_pb2 as signing
from tests.support import pki, softhsm
from tests.support import plugin as plugins
from tests.support.plugin import Plugin
from tests.support.ports import free_port

Figures = dict[tuple[str, frozenset[tuple[str, str]]], float]
_MONITORING = Path(__file__).parents[3] / "deploy/monitoring"
_OF_PROMETHEUS = {"instance", "namespace"}
"""Labels that the collector adds."""

_SIGNING = "istiohsm.signing.v1.SigningService"


class Site:
    """A plugin with its metrics, and the files that it watches."""

    def __init__(self, plugin: Plugin, port: int, certificate: Path, pin_file: Path) -> None:
        self.plugin = plugin
        self.port = port
        self.certificate = certificate
        self.pin_file = pin_file

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def figures(self) -> Figures:
        families = text_string_to_metric_families(self.get("/metrics")[1])
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in families
            for sample in family.samples
        }

    def figure(self, name: str, **labels: str) -> float | None:
        return self.figures().get((name, frozenset(labels.items())))

    def by_token(self, name: str, **labels: str) -> list[float]:
        """Return the figure of each token."""
        return [
            value
            for (found, told), value in self.figures().items()
            if found == name and "token" in dict(told) and labels.items() <= set(told)
        ]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("seen")
    hsm = softhsm.make_token(folder / "token")
    certificate = folder / "client.pem"
    certificate.write_bytes(pki.root("Client").pem)
    port = free_port()
    with plugins.running(
        hsm,
        folder / "run",
        arguments=["--metrics-listen", f"127.0.0.1:{port}"],
        environment={
            "HSM_PLUGIN_WATCH_CERTIFICATES": f"{certificate}:{folder / 'none.pem'}",
            "AUDIT_LOG": str(folder / "audit.log"),
        },
    ) as plugin:
        yield Site(plugin, port, certificate, hsm.pin_file)


def test_a_call_is_counted_by_its_method_and_its_status(site: Site) -> None:
    with site.plugin.signing() as stub:
        stub.GenerateSigningKey(
            signing.GenerateSigningKeyRequest(key_id=b"ca", algorithm=signing.ECDSA_P256)
        )
        for key_id in (b"ca", b"ca", b"none"):
            request = signing.SignRequest(
                key_id=key_id,
                algorithm=signing.ECDSA_SHA256,
                digest=hashlib.sha256(b"x").digest(),
            )
            try:
                stub.Sign(request)
            except grpc.RpcError:
                assert key_id == b"none"
    name = "hsm_plugin_rpc_seconds_count"
    assert site.figure(name, service=_SIGNING, method="Sign", code="OK") == 2
    assert site.figure(name, service=_SIGNING, method="Sign", code="NOT_FOUND") == 1
    assert site.figure(name, service=_SIGNING, method="ListKeys", code="OK") is None


def test_the_calls_of_the_module_come_from_its_process(site: Site) -> None:
    site.plugin.wait_until(
        lambda: (site.figure("hsm_plugin_pkcs11_seconds_count", function="C_Sign") or 0) >= 2,
        "two C_Sign",
    )
    assert site.figure("hsm_plugin_pkcs11_seconds_count", function="C_Login") == 1
    assert (site.figure("hsm_plugin_sessions_open") or 0) >= 1
    assert site.figure("hsm_plugin_sessions_limit") == 8
    assert site.by_token("hsm_plugin_pin_flag", flag="locked") == [0]


def test_expiries_are_those_of_the_roots_and_of_the_files(site: Site) -> None:
    now = datetime.now(UTC).timestamp()
    seen = site.figures()
    files = {
        dict(labels)["file"]: value
        for (name, labels), value in seen.items()
        if name == "hsm_plugin_certificate_expiry_timestamp_seconds"
    }
    assert files.pop(str(site.certificate)) > now + timedelta(hours=1).total_seconds()
    assert list(files.values()) == [0]


def test_a_plugin_that_serves_is_alive_and_ready(site: Site) -> None:
    assert site.get("/healthz") == (200, "alive\n")
    assert site.get("/readyz") == (200, "ready\n")
    assert site.figure("hsm_plugin_token_usable") == 1
    assert site.figure("hsm_plugin_breaker_open") == 0
    assert site.get("/")[0] == 404


def test_the_deks_in_memory_are_counted(site: Site) -> None:
    with site.plugin.keys() as stub:
        kek = stub.GenerateKEK(kms.GenerateKEKRequest(kek_kid=b"seen")).kek_kid
        dek = stub.GenerateDEK(kms.GenerateDEKRequest(kek_kid=kek)).encrypted_dek_blob
        stub.AuthenticatedEncrypt(
            kms.AuthenticatedEncryptRequest(
                kek_kid=kek, encrypted_dek_blob=dek, plaintext=b"x", aad=b"y"
            )
        )
    assert site.figure("hsm_plugin_cached_deks") == 1
    assert site.figure("hsm_plugin_stocked_deks") == 0


def test_the_alert_rules_and_the_dashboard_name_figures_and_labels_that_are_there(
    site: Site,
) -> None:
    with site.plugin.keys() as stub:
        stub.ImportCACert(kms.ImportCACertRequest(ca_cert_blob=pki.root("Mesh Root").der))
    families = list(text_string_to_metric_families(site.get("/metrics")[1]))
    labels = {sample.name: set(sample.labels) for family in families for sample in family.samples}
    names = labels.keys() | {
        f"{family.name}_total" if family.type == "counter" else family.name for family in families
    }
    groups = yaml.safe_load((_MONITORING / "hsm-plugin.rules.yaml").read_text())["groups"]
    rules = [rule["expr"] for group in groups for rule in group["rules"]]
    panels = json.loads((_MONITORING / "dashboard.json").read_text())["panels"]
    queries = [it["expr"] for panel in panels for it in panel.get("targets", [])]
    drawn = {name for query in queries for name in re.findall(r"hsm_plugin_\w+", query)}
    assert len(drawn) > 15
    for expression in (*rules, *queries):
        assert set(re.findall(r"hsm_plugin_\w+", expression)) <= names, expression
        for name, selector in re.findall(r"(hsm_plugin_\w+)\{([^}]*)\}", expression):
            told = labels.get(name, set()) | _OF_PROMETHEUS
            assert set(re.findall(r"(\w+)=", selector)) <= told, expression
        if found := re.search(r"by \(([^)]*)\).*?(hsm_plugin_\w+)", expression):
            told = labels.get(found[2], set()) | _OF_PROMETHEUS
            if found[2] != "hsm_plugin_pkcs11_failures_total":  # this token has refused nothing
                assert set(found[1].split(", ")) <= told, expression


def test_nothing_secret_is_among_the_figures(site: Site) -> None:
    assert site.pin_file.read_text() not in site.get("/metrics")[1]


def test_a_plugin_whose_pin_is_refused_is_alive_and_says_why_it_is_not_ready(
    tmp_path: Path,
) -> None:
    hsm = softhsm.make_token(tmp_path / "token")
    hsm.pin_file.chmod(0o600)
    hsm.pin_file.write_text("000000")
    port = free_port()
    with plugins.running(
        hsm,
        tmp_path / "run",
        environment={"METRICS_LISTEN": f"127.0.0.1:{port}"},
        wanted=plugins.NOT_SERVING,
    ) as plugin:
        site = Site(plugin, port, tmp_path, hsm.pin_file)
        plugin.await_event("token.unavailable")
        status, reason = site.get("/readyz")
        assert status == 503
        assert "refused the PIN" in reason
        assert site.get("/healthz")[0] == 200
        assert site.figure("hsm_plugin_breaker_open") == 1
        plugin.wait_until(
            lambda: site.by_token("hsm_plugin_pin_refused_values") == [1], "the refused PIN"
        )
