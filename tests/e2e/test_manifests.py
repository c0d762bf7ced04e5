"""The files of deploy/, judged by kustomize and by a real Kubernetes API."""

import copy
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import urllib3
import yaml
from kubernetes import client

from istiod_ca_bridge.config import read_config
from tests.e2e.istiod_forms import (
    DEPLOY,
    Object,
    by_helm,
    by_istioctl,
    by_kustomize,
    guide_istiod,
    plain_istiod,
    set_path,
)
from tests.integration.istiod_ca_bridge.cluster_harness import documented_rights
from tests.support import kustomize
from tests.support.kube import KubeCluster

_COLLECTIONS = {
    "ServiceAccount": "api/v1/namespaces/{}/serviceaccounts",
    "ConfigMap": "api/v1/namespaces/{}/configmaps",
    "Service": "api/v1/namespaces/{}/services",
    "Pod": "api/v1/namespaces/{}/pods",
    "Role": "apis/rbac.authorization.k8s.io/v1/namespaces/{}/roles",
    "RoleBinding": "apis/rbac.authorization.k8s.io/v1/namespaces/{}/rolebindings",
    "Deployment": "apis/apps/v1/namespaces/{}/deployments",
    "NetworkPolicy": "apis/networking.k8s.io/v1/namespaces/{}/networkpolicies",
    "ClusterRole": "apis/rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "PodDisruptionBudget": "apis/policy/v1/namespaces/{}/poddisruptionbudgets",
}
_SOURCES = (
    "hsm_plugin/config.py",
    "hsm_plugin/cli.py",
    "hsm_plugin/token_options.py",
    "hsm_plugin/audit_options.py",
    "vault_client/config.py",
    "istiod_ca_bridge/config.py",
)
# Read by the Luna client and by istiod.
_OTHERS = {"ChrystokiConfigurationPath", "ROOT_CA_DIR", "REVISION", "ENABLE_CA_SERVER"}
_SIDECARS = ["vault-client", "hsm-plugin", "istiod-ca-bridge"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the API server says to a dry run."""

    status: int
    message: str
    warnings: tuple[str, ...]


class Api:
    """Creates objects in one namespace, as an administrator, strictly validated."""

    def __init__(self, kube: KubeCluster, namespace: str) -> None:
        user = json.loads(kube.kubeconfig().read_text())["users"][0]["user"]
        self.namespace = namespace
        self._server = kube.server
        self._pool = urllib3.PoolManager(
            ca_certs=str(kube.ca_file),
            cert_file=user["client-certificate"],
            key_file=user["client-key"],
        )

    def create(self, body: Object, *, dry_run: bool = True) -> Answer:
        path = _COLLECTIONS[body["kind"]].format(self.namespace)
        response = self._pool.request(
            "POST",
            f"{self._server}/{path}?fieldValidation=Strict" + ("&dryRun=All" if dry_run else ""),
            json=body,
        )
        told: dict[str, Any] = response.json()
        warnings = tuple(response.headers.getlist("Warning"))
        return Answer(response.status, str(told.get("message", "")), warnings)


@pytest.fixture(scope="module")
def _kustomize() -> None:
    try:
        kustomize.program()
    except kustomize.MissingProgramError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))


@pytest.fixture
def api(kube: KubeCluster, namespace: str) -> Iterator[Api]:
    """A namespace with the labels of deploy/kustomize/namespace and istiod's account."""
    shipped = yaml.safe_load((DEPLOY / "kustomize/namespace/namespace.yaml").read_text())
    client.CoreV1Api(kube.admin_client()).patch_namespace(
        namespace, {"metadata": {"labels": shipped["metadata"]["labels"]}}
    )
    api = Api(kube, namespace)
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "istiod"}}
    assert api.create(account, dry_run=False).status == 201
    yield api
    client.CoreV1Api(kube.admin_client()).delete_namespace(namespace)


def ca_server(
    folder: Path, namespace: str = "istio-system", form: str = "ca-server"
) -> list[Object]:
    """Return the objects of a mode with a bridge of its own, moved to a namespace."""
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": namespace,
        "resources": [os.path.relpath(DEPLOY / "kustomize" / form, folder)],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return list(yaml.safe_load_all(kustomize.build(folder)))


def only(objects: list[Object], kind: str) -> Object:
    [found] = [entry for entry in objects if entry["kind"] == kind]
    return found


def pod_of(deployment: Object) -> Object:
    template = deployment["spec"]["template"]
    metadata = {"name": "one", "labels": template["metadata"]["labels"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def load(path: str) -> Object:
    document: Object = yaml.safe_load((DEPLOY / path).read_text())
    return document


def sealed_forms(folder: Path) -> dict[str, Object]:
    return {
        "helm": by_helm(load("helm/istiod-sealed.yaml")),
        "istioctl": by_istioctl(load("istioctl/sealed.yaml")),
        "kustomize": only(
            by_kustomize("sealed", plain_istiod(), folder, "istio-system"), "Deployment"
        ),
    }


@pytest.mark.usefixtures("_kustomize")
def test_ca_server_mode_is_accepted_whole_and_without_a_warning(api: Api, tmp_path: Path) -> None:
    answers = {entry["kind"]: api.create(entry) for entry in ca_server(tmp_path, api.namespace)}

    assert {kind: (answer.status, answer.message) for kind, answer in answers.items()} == {
        kind: (201, "") for kind in _COLLECTIONS if kind != "Pod"
    }
    assert [answer.warnings for answer in answers.values() if answer.warnings] == []


@pytest.mark.usefixtures("_kustomize")
@pytest.mark.parametrize(("form", "mode"), [("csr-signer", "csr-signer"), ("asm-bridge", "asm")])
def test_the_bridges_other_modes_are_accepted_and_their_pods_are_restricted_too(
    api: Api, tmp_path: Path, form: str, mode: str
) -> None:
    objects = ca_server(tmp_path, api.namespace, form)
    answers = [api.create(entry) for entry in objects]
    api.create(only(objects, "ServiceAccount"), dry_run=False)

    run = api.create(pod_of(only(objects, "Deployment")))

    assert {(answer.status, answer.message) for answer in (*answers, run)} == {(201, "")}
    [bridge] = pod_of(only(objects, "Deployment"))["spec"]["containers"]
    assert {"name": "BRIDGE_MODE", "value": mode} in bridge["env"]
    signer = form == "csr-signer"
    ports = ["grpc-ca", "grpc-health", "http-metrics"]
    assert [port["name"] for port in bridge["ports"]] == ports[signer:]
    assert len([entry for entry in objects if entry["kind"] == "Service"]) == (not signer)


@pytest.mark.usefixtures("_kustomize")
def test_the_signer_gets_the_rights_that_its_own_tests_run_it_with(tmp_path: Path) -> None:
    tested = list(yaml.safe_load_all((DEPLOY / "kustomize/csr-signer/rbac.yaml").read_text()))
    built = ca_server(tmp_path, form="csr-signer")

    for kind in ("Role", "ClusterRole"):
        assert only(built, kind)["rules"] == only(tested, kind)["rules"]
    settings = only(built, "ConfigMap")["data"]
    signer = f"{settings['CERT_SIGNER_DOMAIN']}/{settings['CERT_SIGNER_NAMES']}"
    [signing] = [rule for rule in only(built, "ClusterRole")["rules"] if rule["verbs"] == ["sign"]]
    assert signing["resourceNames"] == [signer]
    values = load("helm/istiod-csr-signer.yaml")
    assert values["pilot"]["env"]["CERT_SIGNER_DOMAIN"] == settings["CERT_SIGNER_DOMAIN"]
    assert values["global"]["certSigners"] == [signer]
    assert values["meshConfig"]["caCertificates"][0]["certSigners"] == [signer]


@pytest.mark.usefixtures("_kustomize")
def test_a_misspelt_field_would_not_be_accepted(api: Api, tmp_path: Path) -> None:
    deployment = only(ca_server(tmp_path, api.namespace), "Deployment")
    deployment["spec"]["template"]["spec"]["containers"][0]["readOnlyRoot"] = True

    answer = api.create(deployment)

    assert answer.status == 400
    assert "readOnlyRoot" in answer.message


@pytest.mark.usefixtures("_kustomize")
def test_a_restricted_namespace_takes_the_pods_of_ca_server_mode(api: Api, tmp_path: Path) -> None:
    objects = ca_server(tmp_path, api.namespace)
    api.create(only(objects, "ServiceAccount"), dry_run=False)

    answer = api.create(pod_of(only(objects, "Deployment")))

    assert (answer.status, answer.message) == (201, "")


@pytest.mark.usefixtures("_kustomize")
@pytest.mark.parametrize("form", ["helm", "istioctl", "kustomize"])
def test_a_restricted_namespace_takes_the_sealed_istiod(
    api: Api, tmp_path: Path, form: str
) -> None:
    istiod = sealed_forms(tmp_path)[form]
    istiod["metadata"]["namespace"] = api.namespace

    deployed, run = api.create(istiod), api.create(pod_of(istiod))

    assert (deployed.status, deployed.message, deployed.warnings) == (201, "", ())
    assert (run.status, run.message) == (201, "")


@pytest.mark.usefixtures("_kustomize")
def test_the_sealed_component_is_accepted_whole(api: Api, tmp_path: Path) -> None:
    objects = by_kustomize("sealed", plain_istiod(), tmp_path, api.namespace)

    answers = {entry["kind"]: api.create(entry) for entry in objects}

    assert {
        kind: (answer.status, answer.message) for kind, answer in answers.items()
    } == dict.fromkeys(("Deployment", "Role", "RoleBinding"), (201, ""))


@pytest.mark.usefixtures("_kustomize")
def test_a_restricted_namespace_takes_the_guides_istiod_once_hardened(
    api: Api, tmp_path: Path
) -> None:
    before = api.create(pod_of(guide_istiod()))
    taken_over = only(by_kustomize("asm", guide_istiod(), tmp_path, api.namespace), "Deployment")

    after = api.create(pod_of(taken_over))

    assert before.status == 403
    assert "PodSecurity" in before.message
    assert (after.status, after.message) == (201, "")


@pytest.mark.usefixtures("_kustomize")
@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("securityContext.runAsNonRoot", False, "runAsNonRoot"),
        ("initContainers.[name:hsm-plugin].securityContext.privileged", True, "privileged"),
        (
            "initContainers.[name:hsm-plugin].securityContext.capabilities",
            {"add": ["IPC_LOCK"]},
            "capabilities",
        ),
        (
            "containers.[name:istiod-ca-bridge].securityContext.allowPrivilegeEscalation",
            True,
            "allowPrivilegeEscalation",
        ),
        (
            "initContainers.[name:vault-client].securityContext.seccompProfile",
            {"type": "Unconfined"},
            "seccompProfile",
        ),
        ("volumes.[100]", {"name": "host", "hostPath": {"path": "/"}}, "hostPath"),
    ],
)
def test_a_tampered_pod_is_refused_by_name(
    api: Api, tmp_path: Path, path: str, value: object, named: str
) -> None:
    objects = ca_server(tmp_path, api.namespace)
    api.create(only(objects, "ServiceAccount"), dry_run=False)
    pod = pod_of(only(objects, "Deployment"))
    if named == "privileged":
        set_path(
            pod["spec"],
            "initContainers.[name:hsm-plugin].securityContext.allowPrivilegeEscalation",
            True,  # noqa: FBT003 - a value of the document
        )
    if named == "runAsNonRoot":
        for container in pod["spec"]["containers"] + pod["spec"]["initContainers"]:
            container["securityContext"]["runAsNonRoot"] = False
    set_path(pod["spec"], path, value)

    answer = api.create(pod)

    assert answer.status == 403
    assert 'violates PodSecurity "restricted:' in answer.message
    assert named in answer.message


@pytest.mark.usefixtures("_kustomize")
def test_the_bridges_account_may_do_what_the_bridge_does_and_nothing_more(
    api: Api, kube: KubeCluster, tmp_path: Path
) -> None:
    for entry in ca_server(tmp_path, api.namespace):
        if entry["kind"] in {"ClusterRole", "ClusterRoleBinding"}:
            entry["metadata"]["name"] += f"-{api.namespace}"  # the cluster is shared
        if entry["kind"] == "ClusterRoleBinding":
            entry["roleRef"]["name"] += f"-{api.namespace}"
        if entry["kind"] == "ServiceAccount" or entry["kind"].endswith(("Role", "RoleBinding")):
            assert api.create(entry, dry_run=False).status == 201
    account = kube.client_for_service_account(api.namespace, "istiod-ca-bridge")
    reviews = client.AuthorizationV1Api(account)

    def may(verb: str, name: str = "", resource: str = "secrets", namespace: str = "") -> bool:
        attributes = client.V1ResourceAttributes(
            namespace=namespace or api.namespace, verb=verb, resource=resource, name=name
        )
        review = client.V1SelfSubjectAccessReview(
            spec=client.V1SelfSubjectAccessReviewSpec(resource_attributes=attributes)
        )
        answer = reviews.create_self_subject_access_review(review)
        return bool(answer.status and answer.status.allowed)

    names = ("istio-ca-encrypted-key", "istio-ca-cert-csr", "istio-ca-cert")
    assert all(may("get", name) for name in names)
    assert may("create")
    assert may("get", "istiod-tls")
    assert may("patch", "istiod-tls")
    assert all(may("patch", name) for name in names)  # a rotation moves them
    refused = ("list", "watch", "update", "delete", "deletecollection")
    assert not [verb for verb in refused if may(verb, names[0]) or may(verb)]
    assert not may("patch")
    root, elsewhere = "istio-ca-root-cert", "default"
    assert all(may(verb, root, "configmaps", elsewhere) for verb in ("list", "watch", "patch"))
    assert not [verb for verb in ("get", "update", "delete") if may(verb, root, "configmaps")]
    assert not may("get", "istio-ca-secret")
    assert not may("get")
    assert not may("get", names[0], namespace="default")
    assert not [kind for kind in ("configmaps", "serviceaccounts") if may("get", "", kind)]


def test_the_manifests_grant_what_the_page_says() -> None:
    shipped = list(yaml.safe_load_all((DEPLOY / "kustomize/ca-server/rbac.yaml").read_text()))
    for documented in documented_rights("istio-system"):
        if "rules" in documented:
            [same_kind] = [it for it in shipped if it["kind"] == documented["kind"]]
            assert same_kind["rules"] == documented["rules"]


@pytest.mark.usefixtures("_kustomize")
def test_the_three_ways_to_the_sealed_istiod_give_the_same_pod(tmp_path: Path) -> None:
    def essence(istiod: Object) -> Object:
        pod = copy.deepcopy(istiod["spec"]["template"]["spec"])
        pod["volumes"].sort(key=lambda volume: str(volume["name"]))
        for container in pod["containers"]:
            container["volumeMounts"].sort(key=lambda mount: str(mount["mountPath"]))
            container["env"].sort(key=lambda variable: str(variable["name"]))
        return dict(pod)

    forms = {name: essence(istiod) for name, istiod in sealed_forms(tmp_path).items()}

    assert forms["helm"] == forms["istioctl"]
    assert forms["helm"] == forms["kustomize"]


@pytest.mark.usefixtures("_kustomize")
def test_sidecars_start_in_order_and_each_holds_back_the_next(tmp_path: Path) -> None:
    for istiod in sealed_forms(tmp_path).values():
        sidecars = istiod["spec"]["template"]["spec"]["initContainers"]

        assert [sidecar["name"] for sidecar in sidecars] == _SIDECARS
        assert {sidecar["restartPolicy"] for sidecar in sidecars} == {"Always"}
        assert all("exec" in sidecar["startupProbe"] for sidecar in sidecars)


@pytest.mark.usefixtures("_kustomize")
def test_secrets_stay_in_bounded_memory_and_only_the_vault_client_has_vaults_token(
    tmp_path: Path,
) -> None:
    deployments = [only(ca_server(tmp_path), "Deployment"), *sealed_forms(tmp_path).values()]
    for deployment in deployments:
        pod = deployment["spec"]["template"]["spec"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        for name in ("hsm-credential", "hsm-socket"):
            assert volumes[name]["emptyDir"]["medium"] == "Memory"
            assert "sizeLimit" in volumes[name]["emptyDir"]
        [source] = volumes["vault-token"]["projected"]["sources"]
        assert source["serviceAccountToken"]["audience"] == "vault"
        mounted: dict[str, dict[str, bool]] = {}
        for container in pod["initContainers"] + pod["containers"]:
            for mount in container["volumeMounts"]:
                users = mounted.setdefault(mount["name"], {})
                users[container["name"]] = mount.get("readOnly", False)
        assert mounted["vault-token"] == {"vault-client": True}
        assert mounted["hsm-socket"]["vault-client"] is True
        assert mounted["hsm-socket"]["hsm-plugin"] is False
        assert mounted["hsm-credential"] == {"vault-client": False, "hsm-plugin": True}
        assert set(mounted["bridge-api-access"]) == {"istiod-ca-bridge"}


@pytest.mark.usefixtures("_kustomize")
def test_the_vault_client_is_told_of_the_socket_that_the_plugin_makes(tmp_path: Path) -> None:
    for deployment in [only(ca_server(tmp_path), "Deployment"), *sealed_forms(tmp_path).values()]:
        told = {
            container["name"]: {entry["name"]: entry.get("value") for entry in container["env"]}
            for container in deployment["spec"]["template"]["spec"]["initContainers"]
        }
        assert told["vault-client"]["HSM_PLUGIN_SOCKET"] == told["hsm-plugin"]["SOCKET"]


def test_no_file_names_a_secret_as_an_environment_variable_or_holds_one() -> None:
    for path in DEPLOY.rglob("*.yaml"):
        text = path.read_text()
        assert "secretKeyRef" not in text, path
        assert "kind: Secret\n" not in text, path
        assert not re.search(r"BEGIN [A-Z ]*PRIVATE KEY|hvs\.|password|\bpin:", text, re.IGNORECASE)


def test_every_setting_in_a_manifest_is_one_that_a_program_reads() -> None:
    read = set[str]()
    for source in _SOURCES:
        read |= set(re.findall(r'"([A-Z][A-Z0-9_]+)"', Path(source).read_text()))
    set_here = set[str]()
    for path in DEPLOY.rglob("*.yaml"):
        set_here |= set(re.findall(r"- (?:\{)?name: (\w*[A-Z]\w*)", path.read_text()))

    assert set_here - read - _OTHERS == set()
    assert {"P11_LIB", "VAULT_ROLE", "KEY_MANAGEMENT_KEY_ID"} <= set_here


@pytest.mark.usefixtures("_kustomize")
def test_the_bridge_reads_the_settings_of_each_form(tmp_path: Path) -> None:
    modes = {"ca-server": "ca-server", "csr-signer": "csr-signer", "asm-bridge": "asm"}
    pods = {}
    for form in modes:
        objects = ca_server(tmp_path, form=form)
        pods[form] = (only(objects, "Deployment"), only(objects, "ConfigMap")["data"])
    settings = pods["ca-server"][1]
    for form, istiod in sealed_forms(tmp_path).items():
        modes[form] = "sealed"
        pods[form] = (istiod, settings)

    for form, (deployment, values) in pods.items():
        pod = deployment["spec"]["template"]["spec"]
        every = pod["initContainers"] + pod["containers"]
        [bridge] = [it for it in every if it["name"] == "istiod-ca-bridge"]
        environment = {
            it["name"]: it["value"] if "value" in it else from_elsewhere(it["valueFrom"], values)
            for it in bridge["env"]
        }
        assert read_config(environment).mode.value == modes[form], form


def from_elsewhere(source: Object, settings: Object) -> str:
    """Return what the kubelet fills in."""
    if "fieldRef" in source:
        return {"metadata.namespace": "istio-system"}.get(source["fieldRef"]["fieldPath"], "x")
    return str(settings[source["configMapKeyRef"]["key"]])


def test_an_overlay_path_that_leads_nowhere_is_an_error() -> None:
    with pytest.raises(KeyError):
        set_path(guide_istiod(), "spec.template.pod.volumes", [])
    with pytest.raises(ValueError, match="not enough values"):
        set_path(guide_istiod(), "spec.template.spec.containers.[name:nobody].image", "")


def test_the_take_over_sets_the_two_images_and_nothing_else() -> None:
    assert load("istioctl/asm.yaml")["spec"] == {
        "values": {
            "hsm": {
                "enabled": True,
                "hsmPluginImage": "istio-hsm/hsm-plugin:0.1.0",
                "vaultClientImage": "istio-hsm/vault-client:0.1.0",
            }
        }
    }
