import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from istio_hsm_installer import schema
from istio_hsm_installer.errors import ConfigError, Fault
from istio_hsm_installer.options import Mode
from tests.unit.istio_hsm_installer.sample import UPSTREAM, document, options


def faults(**sections: dict[str, Any]) -> list[Fault]:
    with pytest.raises(ConfigError) as caught:
        options(**sections)
    return list(caught.value.faults)


def test_the_template_is_a_sound_configuration() -> None:
    made = schema.parse(yaml.safe_load(schema.template()), Path("/site"))
    assert made.hsm_secret_path == "asm-c1/hsm"


def test_every_line_of_the_template_is_sound_without_its_comment_mark() -> None:
    lines = [re.sub(r"^  # ", "  ", line) for line in schema.template().splitlines()]
    made = schema.parse(yaml.safe_load("\n".join(lines)), Path("/site"))
    assert made.istio.revision == "asm-1106-2"


def test_the_guide_s_names_follow_from_the_suffix() -> None:
    made = options()
    assert made.kv_mount == "asm-c1"
    assert made.hsm_secret_path == "asm-c1/hsm"
    assert made.policy == "asm-c1-hsm-policy"
    assert made.mode is Mode.ASM
    assert made.vault.max_lease_ttl == timedelta(hours=87600)
    assert made.vault.role_ttl == timedelta(hours=1)


def test_the_guide_s_long_ttl_is_had_by_option() -> None:
    assert options(vault={"roleTtl": "768h"}).vault.role_ttl == timedelta(days=32)


@pytest.mark.parametrize(
    ("istio", "account"),
    [
        ({}, "istiod-service-account"),
        ({"version": "1.11.0"}, "istiod-asm-1106-2"),
        ({"version": "1.11.0", "revision": ""}, "istiod"),
        (UPSTREAM, "istiod-stable"),
        ({**UPSTREAM, "serviceAccount": "other"}, "other"),
    ],
)
def test_the_service_account_is_the_one_of_that_istio(istio: dict[str, Any], account: str) -> None:
    assert options(istio=istio).service_account == account


def test_an_audience_is_required_where_the_token_can_have_one() -> None:
    assert options().audience is None
    assert options(istio=UPSTREAM).audience == "vault"
    assert options(vault={"audience": "mine"}).audience == "mine"


def test_paths_are_taken_from_the_file_s_folder() -> None:
    made = options(hsm={"pinFile": "/elsewhere/pin"})
    assert made.vault.ca_file == Path("/site/vault-ca.pem")
    assert made.hsm.pin_file == Path("/elsewhere/pin")


def test_all_faults_are_told_at_once_with_hints() -> None:
    found = faults(
        cluster={"suffix": "C 1"},
        vault={"address": "http://vault:8200", "kvVersion": "two", "roleTtl": "soon"},
        istio={"version": 1.1, "revison": "x", "flavour": "other", "overlays": "one"},
    )
    assert {fault.where for fault in found} == {
        "cluster.suffix",
        "vault.address",
        "vault.kvVersion",
        "vault.roleTtl",
        "istio.version",
        "istio.revison",
        "istio.flavour",
        "istio.overlays",
    }
    hints = {fault.where: fault.hint for fault in found}
    assert hints["istio.revison"] == "did you mean revision?"
    assert hints["istio.version"] == 'write it in quotes: "1.1"'
    assert all(fault.hint for fault in found)


def test_what_is_required_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        schema.parse({"apiVersion": "istio-hsm/v1"}, Path("/site"))
    names = [fault.where for fault in caught.value.faults]
    assert "vault.address" in names
    assert "hsm.kekId" in names


def test_another_version_of_the_file_is_refused() -> None:
    with pytest.raises(ConfigError, match="apiVersion"):
        schema.parse({**document(), "apiVersion": "istio-hsm/v2"}, Path("/site"))


@pytest.mark.parametrize(
    ("section", "values", "where"),
    [
        ("vault", {"kvVersion": 3}, "vault.kvVersion"),
        ("vault", {"hsmSecretPath": "other/hsm"}, "vault.hsmSecretPath"),
        ("istio", {"mode": "ca-server"}, "istio.mode"),
        ("istio", {"flavour": "upstream"}, "istio.version"),
        ("release", {"archive": "istio.tar.gz"}, "release"),
        ("hsm", {"slotLabel": "1234"}, "hsm.slotLabel"),
        ("hsm", {"slotLabel": "a,values.global.hub=evil"}, "hsm.slotLabel"),
        ("hsm", {"kekId": "true"}, "hsm.kekId"),
    ],
)
def test_what_cannot_go_together_or_into_istioctl_is_refused(
    section: str, values: dict[str, Any], where: str
) -> None:
    assert [fault.where for fault in faults(**{section: values})] == [where]


def test_the_json_schema_says_what_the_validation_checks() -> None:
    made = schema.json_schema()
    assert made["required"] == ["apiVersion", "cluster", "vault", "hsm"]
    vault = made["properties"]["vault"]
    assert vault["additionalProperties"] is False
    assert vault["required"] == ["address", "caFile"]
    assert not re.search(vault["properties"]["address"]["pattern"], "http://vault:8200")
    assert made["properties"]["istio"]["properties"]["flavour"]["enum"] == ["asm", "upstream"]
