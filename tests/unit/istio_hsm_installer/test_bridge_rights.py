"""The installer grants what the manifests grant, which the bridge's own tests run it with."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from istio_hsm_installer.options import Options
from istio_hsm_installer.steps.bridge_rights import BridgeRights
from tests.unit.istio_hsm_installer import sample

_DEPLOY = Path(__file__).parents[3] / "deploy" / "kustomize"
Right = tuple[str, str, str, str]


def rights(documents: Sequence[Mapping[str, Any]], kind: str) -> Iterator[Right]:
    """Yield API group, resource, name and verb of all that a kind of role grants."""
    for document in documents:
        for rule in document.get("rules", ()) if document["kind"] == kind else ():
            for name in rule.get("resourceNames", [""]):
                for verb in rule["verbs"]:
                    yield rule["apiGroups"][0], rule["resources"][0], name, verb


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("ca-server", sample.options(istio=sample.UPSTREAM)),
        ("csr-signer", sample.options(istio=sample.CSR_SIGNER)),
        ("sealed", sample.options(istio=sample.SEALED)),
    ],
)
@pytest.mark.parametrize("kind", ["Role", "ClusterRole"])
def test_each_mode_grants_what_its_manifests_do(form: str, options: Options, kind: str) -> None:
    shipped = list(yaml.safe_load_all((_DEPLOY / form / "rbac.yaml").read_text()))
    ours = list(BridgeRights(options)._documents)
    assert set(rights(ours, kind)) == set(rights(shipped, kind))
