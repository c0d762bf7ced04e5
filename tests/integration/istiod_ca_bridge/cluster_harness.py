"""A bridge whose Secrets, rights and token reviews are a real Kubernetes API's."""

import base64
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from kubernetes import client, utils

from tests.integration.istiod_ca_bridge import harness
from tests.support import pki, plugin, softhsm
from tests.support.kube import KubeCluster

ACCOUNT = "istiod-ca-bridge"
_GONE = 404
_PAGE = Path(__file__).parents[3] / "docs" / "ca-bridge.md"
_RIGHTS = re.compile(r"```yaml\n(# The bridge's rights.*?)```", re.DOTALL)
_CRL_RIGHTS = re.compile(r"```yaml\n(# The rights that CA_CRL.*?)```", re.DOTALL)
_REMOTE_RIGHTS = re.compile(r"```yaml\n(# The rights that REMOTE.*?)```", re.DOTALL)
_AMBIENT_RIGHTS = re.compile(r"```yaml\n(# The rights that CA_TRUSTED_NODE.*?)```", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Site:
    """A serving bridge, its namespace, and the plugin and root behind it."""

    kube: KubeCluster
    namespace: str
    bridge: harness.Bridge
    hsm: plugin.Plugin
    root: pki.Issued

    @property
    def core(self) -> client.CoreV1Api:
        return client.CoreV1Api(self.kube.admin_client())


def documented_rights(namespace: str, block: re.Pattern[str] = _RIGHTS) -> list[dict[str, Any]]:
    """Return the RBAC objects of docs/ca-bridge.md, for a namespace of the test's own."""
    found = block.search(_PAGE.read_text())
    assert found is not None
    documents: list[dict[str, Any]] = list(
        yaml.safe_load_all(found[1].replace("istio-system", namespace))
    )
    return documents


def shipped_rights(path: Path, namespace: str) -> list[dict[str, Any]]:
    """Return the RBAC objects of a manifest, for a namespace of the test's own."""
    documents = yaml.safe_load_all(path.read_text().replace("istio-system", namespace))
    return list(documents)


def grant(kube: KubeCluster, namespace: str, rights: list[dict[str, Any]] | None = None) -> None:
    """Give the bridge's account in the namespace what the operator's page gives it."""
    for document in rights or documented_rights(namespace):
        utils.create_from_dict(  # type: ignore[no-untyped-call]  # untyped driver
            kube.admin_client(), document
        )


def grant_ambient(kube: KubeCluster, namespace: str) -> None:
    """Give the bridge's account what the operator's page gives it for node agents besides."""
    _grant(kube, namespace, _AMBIENT_RIGHTS)


def grant_crl(kube: KubeCluster, namespace: str) -> None:
    """Give the bridge's account what the operator's page gives it for revocations besides."""
    _grant(kube, namespace, _CRL_RIGHTS)


def grant_remote(kube: KubeCluster, namespace: str) -> None:
    """Give the bridge's account what the operator's page gives it for remote secrets besides."""
    _grant(kube, namespace, _REMOTE_RIGHTS)


def _grant(kube: KubeCluster, namespace: str, block: re.Pattern[str]) -> None:
    for document in documented_rights(namespace, block):
        utils.create_from_dict(  # type: ignore[no-untyped-call]  # untyped driver
            kube.admin_client(), document
        )


def revoke(kube: KubeCluster, namespace: str) -> None:
    """Take back the rights that no namespace's deletion takes, when they are still there."""
    for suffix in ("", "-ambient", "-crl"):
        _revoke(kube, f"istiod-ca-bridge-{namespace}{suffix}")


def _revoke(kube: KubeCluster, name: str) -> None:
    rbac = client.RbacAuthorizationV1Api(kube.admin_client())
    for delete in (rbac.delete_cluster_role_binding, rbac.delete_cluster_role):
        try:
            delete(name)
        except client.ApiException as error:
            if error.status != _GONE:
                raise


def revoke_here(kube: KubeCluster, namespace: str) -> None:
    """Take back the rights in the bridge's own namespace."""
    rbac = client.RbacAuthorizationV1Api(kube.admin_client())
    rbac.delete_namespaced_role_binding(ACCOUNT, namespace)


@contextmanager
def serving_site(
    kube: KubeCluster,
    namespace: str,
    folder: Path,
    environment: Mapping[str, str] | None = None,
    *,
    rights: Path | None = None,
) -> Iterator[Site]:
    """A bridge with the documented rights, or those of a manifest, after the ceremony."""
    kube.create_namespace(namespace)
    grant(kube, namespace, shipped_rights(rights, namespace) if rights else None)
    hsm = softhsm.make_token(folder / "token")
    root = harness.strict_root()
    settings = {
        "BRIDGE_STORE": "kubernetes",
        "KUBECONFIG": str(kube.service_account_kubeconfig(namespace, ACCOUNT)),
        "POD_NAMESPACE": namespace,
    } | dict(environment or {})
    try:
        with plugin.running(hsm, folder / "plugin") as running:
            harness.prepare(running, root)
            with harness.running_bridge(folder, running.socket, settings) as bridge:
                site = Site(kube, namespace, bridge, running, root)
                hold_ceremony(site)
                yield site
    finally:
        revoke(kube, namespace)


def hold_ceremony(site: Site) -> None:
    """Sign the bridge's CSR, offer the chain as the operator does, and wait."""
    bridge = site.bridge
    bridge.await_log(f"Wait until the CA certificate secret {site.namespace}.istio-ca-cert")
    data = site.core.read_namespaced_secret("istio-ca-cert-csr", site.namespace).data or {}
    folder = bridge.secrets / "istio-ca-cert-csr"
    folder.mkdir()
    for key, value in data.items():
        (folder / key).write_bytes(base64.b64decode(value))
    offer(site, harness.signed_ca(harness.decrypted_csr(site.hsm, bridge), site.root))
    bridge.await_serving()


def offer(site: Site, chain: bytes) -> None:
    """Write the Secret with a chain."""
    site.core.create_namespaced_secret(
        site.namespace,
        client.V1Secret(
            metadata=client.V1ObjectMeta(name="istio-ca-cert"),
            data={"cert-chain.pem": base64.b64encode(chain).decode()},
        ),
    )
