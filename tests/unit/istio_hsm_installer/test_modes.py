from pathlib import Path
from typing import Any

import pytest
import yaml

from istio_hsm_installer import istioctl, plan, schema
from istio_hsm_installer.errors import ConfigError
from tests.unit.istio_hsm_installer.sample import (
    CSR_SIGNER,
    SEALED,
    UPSTREAM,
    document,
    options,
)

_DEPLOY = Path(__file__).parents[3] / "deploy"


def bridge_env(istio: dict[str, Any]) -> dict[str, str]:
    bridge: Any = istioctl.sidecars(options(istio=istio))[2]
    return {entry["name"]: entry["value"] for entry in bridge["env"] if "value" in entry}


def test_the_volumes_in_memory_are_as_large_as_those_of_the_manifests() -> None:
    def limits(volumes: list[Any]) -> dict[str, Any]:
        return {it["name"]: it["emptyDir"] for it in volumes if "emptyDir" in it}

    shipped = yaml.safe_load((_DEPLOY / "helm" / "istiod-sealed.yaml").read_text())
    made: Any = istioctl.volumes(options(istio=SEALED))
    assert limits(made) == limits(shipped["pilot"]["volumes"])
    assert all(it["sizeLimit"] for it in limits(made).values())


def test_a_sealed_key_reaches_istiod_through_memory_that_it_only_reads() -> None:
    values: Any = istioctl.helm_values(options(istio=SEALED))
    assert values["pilot"]["env"] == {"ROOT_CA_DIR": "/var/run/hsm-cacerts"}
    assert "caAddress" not in values["global"]
    [mount] = values["pilot"]["volumeMounts"]
    assert (mount["mountPath"], mount["readOnly"]) == ("/var/run/hsm-cacerts", True)
    [volume] = [v for v in values["pilot"]["volumes"] if v["name"] == "hsm-cacerts"]
    assert volume["emptyDir"] == {"medium": "Memory", "sizeLimit": "1Mi"}
    assert bridge_env(SEALED)["CA_PLUG_IN_DIR"] == "/var/run/hsm-cacerts"
    assert "CA_LISTEN" not in bridge_env(SEALED)


def test_a_signer_is_told_to_istiod_to_the_agents_and_to_the_bridge() -> None:
    values: Any = istioctl.helm_values(options(istio=CSR_SIGNER), "the root")
    assert values["pilot"]["env"] == {
        "EXTERNAL_CA": "ISTIOD_RA_KUBERNETES_API",
        "CERT_SIGNER_DOMAIN": "mesh.example.com",
    }
    assert values["global"]["pilotCertProvider"] == "k8s.io/mesh.example.com/hsm"
    assert values["global"]["certSigners"] == ["mesh.example.com/hsm"]
    assert values["meshConfig"]["caCertificates"] == [
        {"certSigners": ["mesh.example.com/hsm"], "pem": "the root"}
    ]
    proxies = values["meshConfig"]["defaultConfig"]["proxyMetadata"]
    assert proxies == {"ISTIO_META_CERT_SIGNER": "hsm"}
    assert bridge_env(CSR_SIGNER)["CERT_SIGNER_NAMES"] == "hsm"


@pytest.mark.parametrize("istio", [UPSTREAM, SEALED, CSR_SIGNER])
def test_the_overlay_says_the_same_as_the_values(istio: dict[str, Any]) -> None:
    made = options(istio=istio)
    overlay: Any = istioctl.operator_overlay(made, "root")
    values: Any = istioctl.helm_values(made, "root")
    assert overlay["spec"]["meshConfig"] == values["meshConfig"]
    assert overlay["spec"]["values"]["global"] == values["global"]
    pilot = {key: value for key, value in values["pilot"].items() if key != "initContainers"}
    assert overlay["spec"]["values"]["pilot"] == pilot


@pytest.mark.parametrize("istio", [UPSTREAM, SEALED, CSR_SIGNER])
def test_each_sidecar_waits_for_the_one_before_for_as_long_as_the_ceremony_takes(
    istio: dict[str, Any],
) -> None:
    for entry in istioctl.sidecars(options(istio=istio)):
        probe: Any = entry["startupProbe"]
        assert probe["periodSeconds"] * probe["failureThreshold"] > 7 * 24 * 3600
        assert probe["timeoutSeconds"] == 5  # a Python program starts within it on a busy node


def test_the_values_of_the_sealed_mode_agree_with_the_manifests() -> None:
    shipped = yaml.safe_load((_DEPLOY / "helm" / "istiod-sealed.yaml").read_text())["pilot"]
    made: Any = istioctl.helm_values(options(istio=SEALED))["pilot"]
    assert made["env"] == shipped["env"]
    assert [c["name"] for c in made["initContainers"]] == [
        c["name"] for c in shipped["initContainers"]
    ]
    assert made["volumeMounts"] == shipped["volumeMounts"]


@pytest.mark.parametrize(
    ("istio", "has_service"), [(UPSTREAM, True), (SEALED, False), (CSR_SIGNER, False)]
)
def test_only_a_ca_that_agents_ask_has_a_service(
    istio: dict[str, Any], *, has_service: bool
) -> None:
    names = [step.name for step in plan.steps(options(istio=istio))]
    assert ("bridge-service" in names) is has_service
    assert names.index("bridge-rights") < names.index("istio")


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"certSigner": None}, "istio.certSigner"),
        ({"certSigner": "kubernetes.io/x"}, "istio.certSigner"),
        ({"certSigner": "nodomain"}, "istio.certSigner"),
        ({"flavour": "asm"}, "istio.mode"),
    ],
)
def test_a_signer_that_cannot_be_is_a_fault(change: dict[str, Any], where: str) -> None:
    wrong = document(istio={**CSR_SIGNER, **change})
    with pytest.raises(ConfigError) as caught:
        schema.parse(wrong, Path("/site"))
    assert where in [fault.where for fault in caught.value.faults]
