"""Kubernetes objects as plain documents, and how two of them differ. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from istio_hsm_installer import differences

Document: TypeAlias = Mapping[str, object]

MANAGED_BY = {"app.kubernetes.io/managed-by": "istio-hsm"}
_SERVER_FIELDS = (
    "managedFields",
    "resourceVersion",
    "uid",
    "creationTimestamp",
    "generation",
    "selfLink",
)
_SECRET_FIELDS = ("data", "stringData")
_PLURALS = {
    "ClusterRole": "clusterroles",
    "ClusterRoleBinding": "clusterrolebindings",
    "ConfigMap": "configmaps",
    "Deployment": "deployments",
    "Event": "events",
    "MutatingWebhookConfiguration": "mutatingwebhookconfigurations",
    "Namespace": "namespaces",
    "Node": "nodes",
    "Pod": "pods",
    "Role": "roles",
    "RoleBinding": "rolebindings",
    "Secret": "secrets",
    "Service": "services",
    "ServiceAccount": "serviceaccounts",
    "StatefulSet": "statefulsets",
}


@dataclass(frozen=True, slots=True)
class Ref:
    """Which object, or without a name which collection."""

    kind: str
    name: str = ""
    namespace: str | None = None
    api: str = "v1"

    def __str__(self) -> str:
        return " ".join(
            (self.kind, f"{self.namespace}/{self.name}" if self.namespace else self.name)
        )

    @property
    def plural(self) -> str:
        """The resource, as RBAC names it."""
        return _PLURALS[self.kind]

    @property
    def group(self) -> str:
        """The API group, empty for the core."""
        return self.api.rpartition("/")[0]

    @property
    def path(self) -> str:
        """Where the API server serves it."""
        parts = ["", "apis" if "/" in self.api else "api", self.api]
        if self.namespace:
            parts += ["namespaces", self.namespace]
        return "/".join([*parts, self.plural, *([self.name] if self.name else [])])


def ref_of(document: Document) -> Ref:
    """Return where the document belongs."""
    metadata = section(document, "metadata")
    namespace = metadata.get("namespace")
    return Ref(
        str(document["kind"]),
        str(metadata["name"]),
        str(namespace) if namespace else None,
        str(document["apiVersion"]),
    )


def section(document: object, *names: str) -> Document:
    """Return the mapping at the path of names, empty when there is none."""
    for name in names:
        document = document.get(name) if isinstance(document, Mapping) else None
    return document if isinstance(document, Mapping) else {}


def entries(document: object, *names: str) -> Sequence[Document]:
    """Return the mappings of the list at the path of names, empty when there is none."""
    *folder, last = names
    found = section(document, *folder).get(last)
    return (
        [entry for entry in found if isinstance(entry, Mapping)] if isinstance(found, list) else []
    )


def name_of(document: Document) -> str:
    """Return metadata.name."""
    return str(section(document, "metadata").get("name"))


def container_statuses(pod: Document) -> Sequence[Document]:
    """Return what a pod says of its containers, native sidecars and init containers first."""
    return [
        *entries(pod, "status", "initContainerStatuses"),
        *entries(pod, "status", "containerStatuses"),
    ]


def named(documents: Sequence[Document], name: str) -> Document:
    """Return the one whose name is this; empty when none is."""
    return next((entry for entry in documents if entry.get("name") == name), {})


def difference(before: Document | None, after: Document) -> Sequence[str]:
    """Return unified-diff lines of what a person would want to see; none when nothing changes."""
    return differences.between(None if before is None else _shown(before), _shown(after))


def _shown(document: Document) -> Document:
    """Return the document without what the server keeps for itself or a Secret's values."""
    metadata = {
        key: value
        for key, value in section(document, "metadata").items()
        if key not in _SERVER_FIELDS
    }
    shown = {key: value for key, value in document.items() if key != "status"}
    if document.get("kind") == "Secret":
        shown = {
            key: dict.fromkeys(section(value), "(hidden)") if key in _SECRET_FIELDS else value
            for key, value in shown.items()
        }
    return {"apiVersion": document.get("apiVersion"), "kind": document.get("kind")} | {
        "metadata": metadata,
        **{k: v for k, v in shown.items() if k not in {"apiVersion", "kind", "metadata"}},
    }
