"""uninstall: what apply made and what a running CA left, on real servers."""

import base64
import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from kubernetes import client

from tests.e2e.installer_site import BESIDE_THE_HSM, Site
from tests.support import pki
from tests.support.kube import KubeCluster
from tests.support.openbao import OpenBao
from tests.support.plugin import Plugin

LEFT = ("istio-ca-encrypted-key", "istio-ca-cert-csr", "istio-ca-cert", "istiod-tls")


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    server = OpenBao(tmp_path_factory.mktemp("bao"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def site(tmp_path: Path, kube: KubeCluster, bao: OpenBao) -> Iterator[Site]:
    """An applied installation whose CA has run. No HSM is asked: nothing there is taken away."""
    site = Site(tmp_path / "operator", kube, bao, Plugin(tmp_path / "no.sock", tmp_path, None))  # type: ignore[arg-type]  # no process
    forget_injection(site)
    site.areas = BESIDE_THE_HSM
    assert site.run("apply").code == 0
    site.areas = ()
    root = pki.root()
    chain = pki.intermediate(root).pem + root.pem
    for name in LEFT:
        secret = client.V1Secret(
            metadata=client.V1ObjectMeta(name=name),
            data={"cert-chain.pem": base64.b64encode(chain).decode()},
        )
        site.core.create_namespaced_secret(site.istio_namespace, secret)
    for namespace, pem in (("default", root.pem), ("kube-public", pki.root().pem)):
        publish(site, namespace, pem)
    yield site
    inject(site, None)
    for namespace in ("default", "kube-public"):
        with contextlib.suppress(client.ApiException):
            site.core.delete_namespaced_config_map("istio-ca-root-cert", namespace)
    rbac = client.RbacAuthorizationV1Api(kube.admin_client())
    with contextlib.suppress(client.ApiException):
        rbac.delete_cluster_role_binding("role-tokenreview-binding")


def publish(site: Site, namespace: str, pem: bytes) -> None:
    body = client.V1ConfigMap(
        metadata=client.V1ObjectMeta(name="istio-ca-root-cert"),
        data={"root-cert.pem": pem.decode()},
    )
    with contextlib.suppress(client.ApiException):  # of a bridge that served in another test
        site.core.delete_namespaced_config_map("istio-ca-root-cert", namespace)
    site.core.create_namespaced_config_map(namespace, body)


def forget_injection(site: Site) -> None:
    """Take off what other tests labelled: `uninstall` looks at every namespace."""
    labelled = site.core.list_namespace(label_selector="istio.io/rev=asm-1106-2").items
    for entry in labelled:
        if entry.metadata and entry.metadata.name:
            body = {"metadata": {"labels": {"istio.io/rev": None}}}
            site.core.patch_namespace(entry.metadata.name, body)


def inject(site: Site, revision: str | None) -> None:
    """Label a namespace of workloads, or take the label off."""
    site.core.patch_namespace("default", {"metadata": {"labels": {"istio.io/rev": revision}}})


def secrets_of(site: Site) -> set[str]:
    found = site.core.list_namespaced_secret(site.istio_namespace).items
    return {str(entry.metadata.name) for entry in found if entry.metadata}


def roots(site: Site) -> set[str]:
    found = site.core.list_config_map_for_all_namespaces(
        field_selector="metadata.name=istio-ca-root-cert"
    ).items
    ours = {"default", "kube-public"}
    return {str(entry.metadata.namespace) for entry in found if entry.metadata} & ours


def test_injected_namespaces_are_in_the_way_then_all_goes_but_the_ca_key_and_what_vault_keeps(
    site: Site,
) -> None:
    inject(site, "asm-1106-2")
    refused = site.run("uninstall", "--yes")
    assert refused.code == 1
    assert "still injected: default" in refused.err
    assert set(LEFT) <= secrets_of(site)

    ran = site.run("uninstall", "--yes", "--force")
    inject(site, None)
    assert ran.code == 0, ran.err
    notes = {step["step"]: step["notes"] for step in ran.document["steps"]}
    assert "kv-secret" not in notes
    assert notes["mesh-leftovers"][0].startswith(
        f"Secret {site.istio_namespace}/istio-ca-encrypted-key stays"
    )
    assert secrets_of(site) == {"istio-ca-encrypted-key"}
    assert roots(site) == {"kube-public"}  # another CA's, and not ours to take
    assert "uninstall" in site.istioctl_log.read_text().splitlines()[-1]
    assert site.bao.read(f"asm-{site.suffix}/hsm")["data"] == site.values
    assert [name for name in site.vault_leftovers() if "policy" in name] == []

    again = site.run("uninstall", "--yes", "--with-vault-secret", "--with-ca-key")
    assert again.code == 0, again.err
    assert not site.namespaces()
    assert not site.vault_leftovers()
    assert not site.state.exists()


def test_without_an_answer_nothing_is_taken_away(site: Site) -> None:
    before = secrets_of(site)
    assert site.run("uninstall").code == 1
    assert secrets_of(site) == before


def test_another_control_plane_keeps_what_it_shares(site: Site) -> None:
    apps = client.AppsV1Api(site.kube.admin_client())
    labels = {"app": "istiod"}
    template = client.V1PodTemplateSpec(
        metadata=client.V1ObjectMeta(labels=labels),
        spec=client.V1PodSpec(containers=[client.V1Container(name="discovery", image="p:1")]),
    )
    apps.create_namespaced_deployment(
        site.istio_namespace,
        client.V1Deployment(
            metadata=client.V1ObjectMeta(name="istiod-other", labels=labels),
            spec=client.V1DeploymentSpec(
                selector=client.V1LabelSelector(match_labels=labels), template=template
            ),
        ),
    )
    ran = site.run("uninstall", "--yes")
    assert ran.code == 0, ran.err
    notes = {step["step"]: step["notes"] for step in ran.document["steps"]}
    assert notes["mesh-leftovers"] == ["everything of the CA stays: istiod-other uses it"]
    assert set(LEFT) <= secrets_of(site)
    assert "default" in roots(site)


UPSTREAM = """  flavour: upstream
  version: 1.28.1
  revision: stable
  mode: {mode}
  certSigner: mesh.example.com/hsm
"""


@pytest.mark.parametrize(
    ("mode", "may", "may_not"),
    [
        (
            "csr-signer",
            ("sign", "certificates.k8s.io", "signers", "mesh.example.com/hsm"),
            ("create", "authentication.k8s.io", "tokenreviews", ""),
        ),
        (
            "ca-server",
            ("create", "authentication.k8s.io", "tokenreviews", ""),
            ("sign", "certificates.k8s.io", "signers", "mesh.example.com/hsm"),
        ),
    ],
)
def test_the_bridge_gets_the_rights_of_its_mode_and_loses_them_again(
    tmp_path: Path,
    kube: KubeCluster,
    bao: OpenBao,
    mode: str,
    may: tuple[str, ...],
    may_not: tuple[str, ...],
) -> None:
    site = Site(tmp_path / "operator", kube, bao, Plugin(tmp_path / "no.sock", tmp_path, None))  # type: ignore[arg-type]  # no process
    site.config.write_text(site.config.read_text() + UPSTREAM.format(mode=mode))
    site.kube.create_namespace(site.istio_namespace)
    site.kube.create_namespace(site.reviewer_namespace)
    site.areas = ("--only", "kubernetes")
    assert site.run("apply").code == 0
    assert site.run("apply").document["summary"] == "no changes"
    assert is_allowed(site, *may)
    assert not is_allowed(site, *may_not)
    assert site.run("undo", "--yes").code == 0
    assert not is_allowed(site, *may)


def is_allowed(site: Site, verb: str, group: str, resource: str, name: str) -> bool:
    """Ask the API server what istiod's account may do."""
    review = client.V1SubjectAccessReview(
        spec=client.V1SubjectAccessReviewSpec(
            user=f"system:serviceaccount:{site.istio_namespace}:istiod-stable",
            resource_attributes=client.V1ResourceAttributes(
                verb=verb, group=group, resource=resource, name=name
            ),
        )
    )
    api = client.AuthorizationV1Api(site.kube.admin_client())
    answer = api.create_subject_access_review(review)
    return answer.status is not None and answer.status.allowed is True
