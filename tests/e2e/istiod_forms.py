"""What Helm's chart, istioctl and kustomize make of an istiod Deployment with our files."""

import copy
import os
import re
from pathlib import Path
from typing import Any

import yaml

from tests.support import kustomize

Object = dict[str, Any]
DEPLOY = Path("deploy")
_PLAIN = Path("tests/e2e/istiod.yaml")


def plain_istiod() -> Object:
    """Return istiod as the chart makes it by default."""
    document: Object = yaml.safe_load(_PLAIN.read_text())
    return document


def guide_istiod() -> Object:
    """Return istiod with the two containers of the guide (CONTRACTS: the pod contract)."""
    istiod = plain_istiod()
    pod = istiod["spec"]["template"]["spec"]
    credential = {"name": "hsm-credential", "mountPath": "/var/run/hsm-credential"}
    pod["containers"] += [
        {"name": "hsm-plugin", "image": "guide/plugin", "volumeMounts": [credential]},
        {"name": "vaultclient", "image": "guide/vault", "volumeMounts": [credential]},
    ]
    memory = {"emptyDir": {"medium": "Memory"}}
    pod["volumes"] += [{"name": name, **memory} for name in ("hsm-credential", "hsm-socket")]
    return istiod


def by_helm(values: Object) -> Object:
    """Return istiod as the chart (1.24 and later) uses the values under `pilot`."""
    istiod, pilot = plain_istiod(), values["pilot"]
    pod = istiod["spec"]["template"]["spec"]
    discovery = pod["containers"][0]
    discovery["env"] += [{"name": name, "value": value} for name, value in pilot["env"].items()]
    discovery["volumeMounts"] += pilot.get("volumeMounts", [])
    pod["volumes"] += pilot.get("volumes", [])
    pod["securityContext"]["seccompProfile"] = pilot["seccompProfile"]
    if "initContainers" in pilot:
        pod["initContainers"] = pilot["initContainers"]
    return istiod


def by_istioctl(operator: Object) -> Object:
    """Return istiod as istioctl patches it by components.pilot.k8s.overlays."""
    istiod = plain_istiod()
    env = operator["spec"]["values"]["pilot"]["env"]
    discovery = istiod["spec"]["template"]["spec"]["containers"][0]
    discovery["env"] += [{"name": name, "value": value} for name, value in env.items()]
    for overlay in operator["spec"]["components"]["pilot"]["k8s"]["overlays"]:
        assert (overlay["kind"], overlay["name"]) == ("Deployment", "istiod")
        for patch in overlay["patches"]:
            set_path(istiod, patch["path"], patch["value"])
    return istiod


def by_kustomize(component: str, istiod: Object, folder: Path, namespace: str) -> list[Object]:
    """Return all objects of a kustomization of this istiod and a component of ours."""
    (folder / "istiod.yaml").write_text(yaml.safe_dump(istiod))
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": namespace,
        "resources": ["istiod.yaml"],
        "components": [os.path.relpath(DEPLOY / "kustomize" / component, folder)],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return list(yaml.safe_load_all(kustomize.build(folder)))


def set_path(document: Object, path: str, value: object) -> None:
    """Set a value by the documented path: a.b.[key:value].[index]; past the end appends.

    All nodes but the last must exist (IstioOperator reference, K8sObjectOverlay.PathValue).
    """
    *way, last = path.split(".")
    node: Any = document
    for step in way:
        node = node[_index(node, step)]
    index = _index(node, last)
    if isinstance(node, list) and index >= len(node):
        node.append(copy.deepcopy(value))
    else:
        node[index] = copy.deepcopy(value)


def _index(node: Any, step: str) -> Any:
    match = re.fullmatch(r"\[(?:(\w+):([^\]]+)|(\d+))\]", step)
    if match is None:
        return step
    if match[3]:
        return int(match[3])
    [found] = [index for index, item in enumerate(node) if item[match[1]] == match[2]]
    return found
