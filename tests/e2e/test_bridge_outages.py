"""What goes wrong around a bridge: told in log, metric and Event, and over by itself.

The table below is the one of docs/ca-bridge.md, which is held to it. Health says the truth
throughout, and whatever was issued is in the issuance log at the end.
"""

import base64
import re
import secrets
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from kubernetes import client

from istiod_ca_bridge.issuance_verify import verify
from tests.e2e import bridge_replicas
from tests.e2e.bridge_replicas import Replicas
from tests.integration.istiod_ca_bridge import harness
from tests.support import plugin
from tests.support.fake_clock import FakeClock
from tests.support.faults import ON_THE_TOKEN, Ckr
from tests.support.kube import KubeCluster
from tests.support.ports import free_port

_PAGE = Path(__file__).parents[2] / "docs" / "ca-bridge.md"
_SAMPLE = re.compile(r"^(\w+(?:\{.*\})?) (\S+)$", re.MULTILINE)
_A_MINUTE = 61.0
_KEY, _CERTIFICATE = "istio-ca-encrypted-key", "istio-ca-cert"
_DAYS = 24.0


@dataclass(slots=True)
class Scene:
    """A bridge that serves, and what its clients hold."""

    site: Replicas
    clock: FakeClock
    metrics: str
    ledger: Path
    kept: Mapping[str, Mapping[str, bytes]]
    """The Secrets as they are when all is well."""

    holder: harness.Workload
    serials: list[str] = field(default_factory=list)

    @property
    def bridge(self) -> harness.Bridge:
        [bridge] = self.site.running.values()
        return bridge

    def sample(self, name: str) -> float:
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=5) as answer:
            return float(dict(_SAMPLE.findall(answer.read().decode())).get(name, 0))

    def renew(self) -> harness.Workload:
        """Have a certificate by the one before, as an agent does."""
        self.holder = harness.create_certificate(self.bridge, client=self.holder)
        self.serials.append(f"{self.holder.leaf.serial_number:x}")
        return self.holder

    def times(self, reason: str) -> int:
        """Return how often this was told in Events."""
        return sum(event.series.count if event.series else 1 for event in self.site.events(reason))

    def last(self, reason: str) -> datetime:
        """Return when this was, the last time that it is told in Events."""
        return max(
            event.series.last_observed_time if event.series else event.event_time
            for event in self.site.events(reason)
        )

    def restore(self, name: str) -> None:
        """Write a Secret as it was."""
        data = {key: base64.b64encode(it).decode() for key, it in self.kept[name].items()}
        body = client.V1Secret(metadata=client.V1ObjectMeta(name=name), data=dict(data))
        if self.site.secret(name) is None:
            self.site.core.create_namespaced_secret(self.site.namespace, body)
        else:
            self.site.core.patch_namespaced_secret(name, self.site.namespace, {"data": data})

    def delete(self, name: str) -> None:
        self.site.core.delete_namespaced_secret(name, self.site.namespace)

    def lose_hsm(self) -> None:
        self.site.faults.refuse(Ckr.TOKEN_NOT_PRESENT, *ON_THE_TOKEN)


@dataclass(frozen=True, slots=True)
class Outage:
    """What happens, and where it is told."""

    name: str
    begin: Callable[[Scene], None]
    end: Callable[[Scene], object]
    log: str
    metric: str
    event: str
    over: str
    """The Event that tells the end of it."""

    value: float | None = 0.0
    """Of the metric meanwhile; None: it counts, and grows."""

    serves: bool = False
    """Whether certificates are had meanwhile."""

    told_later: bool = False
    """The Event comes when the API server is back."""


def _condition(kind: str) -> str:
    return f'istiod_ca_bridge_condition{{type="{kind}"}}'


_JUMPS = 'istiod_ca_bridge_events_total{reason="ClockJumped"}'

OUTAGES = (
    Outage(
        "the API server is gone",
        lambda it: it.site.kube.stop_apiserver(),
        lambda it: it.site.kube.start_apiserver(),
        "condition.changed type=ApiServerReachable status=False",
        _condition("ApiServerReachable"),
        "ApiServerAway",
        "Reachable",
        serves=True,
        told_later=True,
    ),
    Outage(
        "the HSM is gone",
        Scene.lose_hsm,
        lambda it: it.site.faults.heal(),
        "health.not_serving",
        "istiod_ca_bridge_ready",
        "CannotSign",
        "Serving",
    ),
    Outage(
        "the plugin is killed",
        lambda it: it.site.hsm.kill(),
        lambda it: it.site.revive_hsm(),
        "health.not_serving",
        "istiod_ca_bridge_ready",
        "CannotSign",
        "Serving",
    ),
    Outage(
        "the clock is set past the CA's end",
        lambda it: it.clock.set_ahead(90 * _DAYS),
        lambda it: it.clock.set_ahead(0),
        "clock.jumped",
        _JUMPS,
        "ClockJumped",
        "Serving",
        value=None,
        told_later=True,
    ),
    Outage(
        "the clock is set back before the CA's begin",
        lambda it: it.clock.set_ahead(-90 * _DAYS),
        lambda it: it.clock.set_ahead(0),
        "clock.jumped",
        _JUMPS,
        "ClockJumped",
        "Serving",
        value=None,
        told_later=True,
    ),
    Outage(
        "`istio-ca-encrypted-key` is deleted",
        lambda it: it.delete(_KEY),
        lambda _: None,
        "ca_key.secret_unusable",
        _condition("KeyAvailable"),
        "SecretMissing",
        "KeySecretRestored",
        serves=True,
    ),
    Outage(
        "`istio-ca-encrypted-key` is spoilt",
        lambda it: it.site.patch(_KEY, **{"encrypted-dek": ""}),
        lambda it: it.restore(_KEY),
        "ca_key.secret_unusable",
        _condition("KeyAvailable"),
        "SecretUnusable",
        "Available",
        serves=True,
    ),
    Outage(
        "`istio-ca-cert` is deleted",
        lambda it: it.delete(_CERTIFICATE),
        lambda it: it.restore(_CERTIFICATE),
        "ca_chain.refused",
        _condition("ChainAccepted"),
        "Refused",
        "Accepted",
        serves=True,
    ),
    Outage(
        "`istio-ca-cert` is spoilt",
        lambda it: it.site.patch(_CERTIFICATE, **{"cert-chain.pem": "no chain"}),
        lambda it: it.restore(_CERTIFICATE),
        "ca_chain.refused",
        _condition("ChainAccepted"),
        "Refused",
        "Accepted",
        serves=True,
    ),
)


@pytest.fixture(scope="module")
def scene(kube: KubeCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    namespace = f"bridge-{secrets.token_hex(4)}"
    kube.create_namespace(namespace)
    folder = tmp_path_factory.mktemp("bridge")
    clock = FakeClock(folder / "clock")
    clock.set_ahead(0)
    metrics = f"127.0.0.1:{free_port()}"
    settings = {
        "PUBLISH_ROOT_CERT": "false",
        "ISTIOD_TLS": "false",
        "METRICS_LISTEN": metrics,
        "ISSUANCE_LOG": str(folder / "issued.log"),
    } | clock.environment()
    with bridge_replicas.replicas(kube, namespace, folder, settings) as site:
        site.start()
        site.offer(_CERTIFICATE, harness.signed_ca(site.csr("istio-ca-cert-csr"), site.root))
        site.await_serving()
        kept = {name: site.secret(name) or {} for name in (_KEY, _CERTIFICATE)}
        yield Scene(site, clock, metrics, folder / "issued.log", kept, site.workload())


def refused(scene: Scene) -> bool:
    """Tell whether nobody gets a certificate now, and why that is: it cannot be had."""
    try:
        scene.renew()
    except grpc.RpcError as error:
        return error.code() is grpc.StatusCode.UNAVAILABLE
    return False


def assert_all_is_as_it_was(scene: Scene) -> None:
    site = scene.site
    site.await_serving()
    site.await_leader()
    assert {name: site.secret(name) for name in scene.kept} == scene.kept
    before = scene.holder.chain[1:]
    assert scene.renew().chain[1:] == before
    assert site.workload().chain[1:] == before
    kinds = ("Ready", "KeyAvailable", "ChainAccepted", "ApiServerReachable")
    site.wait_until(
        lambda: all(scene.sample(_condition(kind)) == 1 for kind in kinds), f"all of {kinds}"
    )


@pytest.mark.parametrize("outage", OUTAGES, ids=lambda it: it.name.replace("`", ""))
def test_an_outage_is_told_in_log_metric_and_event_and_is_over_by_itself(
    scene: Scene, outage: Outage
) -> None:
    site, bridge = scene.site, scene.bridge
    scene.renew()
    lines, counted = bridge.log.count(outage.log), scene.sample(outage.metric)
    told, over = scene.times(outage.event), scene.times(outage.over)

    outage.begin(scene)
    try:
        bridge.await_log(outage.log, count=lines + 1)
        if outage.value is None:
            bridge.wait_until(lambda: scene.sample(outage.metric) > counted, outage.metric)
        else:
            bridge.wait_until(lambda: scene.sample(outage.metric) == outage.value, outage.metric)
        if outage.serves:
            assert bridge.health() == plugin.SERVING
            scene.renew()
        else:
            bridge.wait_until(lambda: bridge.health() == plugin.NOT_SERVING, "NOT_SERVING")
            assert refused(scene)
        if not outage.told_later:
            site.wait_until(lambda: scene.times(outage.event) > told, outage.event)
    finally:
        outage.end(scene)

    site.wait_until(lambda: scene.times(outage.event) > told, outage.event)
    site.wait_until(lambda: scene.times(outage.over) > over, outage.over)
    assert_all_is_as_it_was(scene)


def test_a_server_certificate_made_while_the_clock_was_ahead_is_replaced_when_it_is_right(
    scene: Scene,
) -> None:
    bridge = scene.bridge
    made = bridge.log.count("server_certificate.renewed")
    scene.clock.set_ahead(14)
    try:
        bridge.await_log("server_certificate.renewed", count=made + 1)
        with pytest.raises(grpc.RpcError, match="not yet valid"):
            scene.renew()
    finally:
        scene.clock.set_ahead(0)

    bridge.await_log("server_certificate.renewed", count=made + 2)
    assert_all_is_as_it_was(scene)


@pytest.mark.timeout(240)
def test_the_api_server_and_the_hsm_gone_for_a_minute_each_at_once_lose_nothing(
    scene: Scene,
) -> None:
    site, bridge = scene.site, scene.bridge
    scene.renew()
    away, mute = scene.times("ApiServerAway"), scene.times("CannotSign")
    began = datetime.now(UTC)
    site.kube.stop_apiserver()
    try:
        api_until = time.monotonic() + _A_MINUTE
        bridge.wait_until(lambda: scene.sample(_condition("ApiServerReachable")) == 0, "told")
        scene.renew()  # whoever has a certificate needs no API server
        scene.lose_hsm()
        hsm_until = time.monotonic() + _A_MINUTE
        bridge.wait_until(lambda: bridge.health() == plugin.NOT_SERVING, "NOT_SERVING")
        while time.monotonic() < api_until:
            assert refused(scene)
            assert bridge.health() == plugin.NOT_SERVING
            assert scene.sample("istiod_ca_bridge_ready") == 0
            time.sleep(5)
    finally:
        site.kube.start_apiserver()
    site.wait_until(lambda: scene.times("CannotSign") > mute, "what was told meanwhile")
    assert scene.times("ApiServerAway") > away
    site.await_condition("Ready", "CannotSign")
    assert abs(scene.last("ApiServerAway") - began) < timedelta(
        seconds=30
    )  # when it was, not when it could be told
    while time.monotonic() < hsm_until:
        assert bridge.health() == plugin.NOT_SERVING
        time.sleep(0.5)

    site.faults.heal()

    assert_all_is_as_it_was(scene)
    site.await_condition("Ready", "Serving")


def test_all_that_was_issued_is_in_the_issuance_log(scene: Scene) -> None:
    assert scene.bridge.stop() == 0

    chain = scene.ledger.with_name("chain.pem")
    chain.write_bytes(scene.kept[_CERTIFICATE]["cert-chain.pem"])
    assert verify([scene.ledger], chain).gaps == 0
    logged = scene.ledger.read_text()
    assert scene.serials
    assert [serial for serial in scene.serials if serial not in logged] == []
    issuer = x509.load_pem_x509_certificates(chain.read_bytes())[0]
    scene.holder.leaf.verify_directly_issued_by(issuer)


def test_the_page_has_this_table() -> None:
    rows = [line for line in _PAGE.read_text().splitlines() if line.startswith("| ")]
    for outage in OUTAGES:
        [row] = [row for row in rows if row.startswith(f"| {outage.name} ")]
        _, _, serves, log, metric, events, _ = row.split("|")
        assert serves.strip() == ("yes" if outage.serves else "no"), row
        assert f"`{outage.log}`" in log, row
        assert f"`{outage.metric}`" in metric, row
        for word in (outage.event, outage.over):
            assert f"`{word}`" in events, row
