"""What the bridge may do at the API server, granted to istiod's account, which it runs under."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from istio_hsm_installer.objects import MANAGED_BY, Document
from istio_hsm_installer.options import Mode, Options
from istio_hsm_installer.steps.kube_object import plan_object, undo_object
from istio_hsm_installer.steps.step import Area, Change, World

_RBAC = "rbac.authorization.k8s.io"
_LIFECYCLE = ("istio-ca-encrypted-key", "istio-ca-cert-csr", "istio-ca-cert")
_PASSING = (
    *("istio-ca-cert-csr-renewal", "istio-ca-rotation", "istio-ca-encrypted-key-next"),
    *("istio-ca-cert-csr-next", "istio-ca-cert-next", "istio-ca-encrypted-key-previous"),
)
"""Secrets that a renewal or a rotation writes and takes away again."""


@dataclass(frozen=True, slots=True)
class BridgeRights:
    """Applies roles and bindings of the mode, and no right more."""

    options: Options
    name: str = "bridge-rights"
    title: str = "rights of the CA bridge"
    area: Area = Area.KUBERNETES
    hint: str = "granting rights needs them oneself: ask a cluster administrator"

    def check(self, world: World) -> None:
        """Nothing is brought for it."""

    def plan(self, world: World) -> Sequence[Change]:
        """Return what a server-side dry run would change."""
        return [change for document in self._documents for change in plan_object(world, document)]

    def apply(self, world: World) -> None:
        """Apply them."""
        for document in self._documents:
            world.kube.apply(document)

    def undo(self, world: World, created: Collection[str]) -> Sequence[str]:
        """Delete those that were created here."""
        return [
            note
            for document in reversed(self._documents)
            for note in undo_object(world, document, created)
        ]

    @property
    def _documents(self) -> Sequence[Document]:
        namespace = self.options.istio.namespace
        name = f"{self.options.istiod_name}-ca-bridge"
        cluster_wide = f"{name}-{namespace}"
        return [
            _role("Role", name, namespace, _in_namespace(self.options.mode)),
            _binding("Role", name, namespace, namespace, self.options.service_account),
            _role("ClusterRole", cluster_wide, None, _everywhere(self.options)),
            _binding("ClusterRole", cluster_wide, None, namespace, self.options.service_account),
        ]


def _in_namespace(mode: Mode) -> Sequence[Document]:
    rules = [
        _rule("", "secrets", ["get"], (*_LIFECYCLE, *_PASSING)),
        _rule("", "secrets", ["patch"], ("istio-ca-rotation", *_LIFECYCLE)),
        _rule("", "secrets", ["delete"], _PASSING),
        _rule("", "secrets", ["create"]),  # RBAC cannot bind `create` to names
        _rule("coordination.k8s.io", "leases", ["get", "patch"], ["istiod-ca-bridge"]),
        _rule("coordination.k8s.io", "leases", ["create"]),
        _rule("events.k8s.io", "events", ["create", "patch"]),
        _rule("", "pods", ["get"]),
        _rule("", "configmaps", ["get", "patch"], ["istio-hsm-ca-status"]),
        _rule("", "configmaps", ["create"]),
    ]
    if mode is Mode.CA_SERVER:
        rules.append(_rule("", "secrets", ["get", "patch"], ["istiod-tls"]))
    return rules


def _everywhere(options: Options) -> Sequence[Document]:
    if options.mode is Mode.CSR_SIGNER:
        csr = "certificatesigningrequests"
        return [
            _rule("certificates.k8s.io", csr, ["list", "watch"]),
            _rule("certificates.k8s.io", f"{csr}/status", ["update"]),
            _rule("certificates.k8s.io", "signers", ["sign"], [str(options.istio.cert_signer)]),
            _rule("", "namespaces", ["list", "watch"]),
            _rule("", "configmaps", ["list", "watch"], ["istio-ca-root-cert"]),
        ]
    if options.mode is Mode.CA_SERVER:
        return [
            _rule("authentication.k8s.io", "tokenreviews", ["create"]),
            _rule("", "namespaces", ["list", "watch"]),
            _rule("", "configmaps", ["list", "watch", "patch"], ["istio-ca-root-cert"]),
            _rule("", "configmaps", ["create"]),
        ]
    return []


def _rule(group: str, resource: str, verbs: Sequence[str], names: Sequence[str] = ()) -> Document:
    rule: dict[str, object] = {
        "apiGroups": [group],
        "resources": [resource],
        "verbs": list(verbs),
    }
    return {**rule, "resourceNames": list(names)} if names else rule


def _metadata(name: str, namespace: str | None) -> Document:
    where = {"namespace": namespace} if namespace else {}
    return {"name": name, **where, "labels": MANAGED_BY}


def _role(kind: str, name: str, namespace: str | None, rules: Sequence[Document]) -> Document:
    return {
        "apiVersion": f"{_RBAC}/v1",
        "kind": kind,
        "metadata": _metadata(name, namespace),
        "rules": list(rules),
    }


def _binding(
    kind: str, name: str, namespace: str | None, account_namespace: str, account: str
) -> Document:
    return {
        "apiVersion": f"{_RBAC}/v1",
        "kind": f"{kind}Binding",
        "metadata": _metadata(name, namespace),
        "roleRef": {"apiGroup": _RBAC, "kind": kind, "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": account_namespace}],
    }
