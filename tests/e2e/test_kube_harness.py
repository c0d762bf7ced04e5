"""What the tests' control plane does like a real cluster, and that it leaves nothing behind."""

import base64
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from kubernetes import client, config, watch

from tests.support import kube_binaries
from tests.support.kube import KubeCluster
from tests.support.kube_binaries import BuildError, KubeBinaries, MissingProgramError
from tests.support.kube_pki import Authority
from tests.support.kube_process import ChildError

ISTIO_CA = "istio-ca"
SIGNER = "example.test/mesh"
TIMEOUT_S = 30


@pytest.fixture
def core(kube: KubeCluster) -> client.CoreV1Api:
    return client.CoreV1Api(kube.admin_client())


@pytest.fixture
def outage(kube: KubeCluster) -> Iterator[KubeCluster]:
    """The shared cluster, brought back whatever the test did to its API server."""
    yield kube
    if "kube-apiserver" in kube.pids():
        kube.resume()
    else:
        kube.start_apiserver()


def review(api_client: client.ApiClient, token: str, *audiences: str) -> client.V1TokenReviewStatus:
    body = client.V1TokenReview(
        spec=client.V1TokenReviewSpec(token=token, audiences=list(audiences))
    )
    answer = client.AuthenticationV1Api(api_client).create_token_review(
        body, _request_timeout=TIMEOUT_S
    )
    assert answer.status is not None
    return answer.status


def secret(name: str, **data: str) -> client.V1Secret:
    return client.V1Secret(
        metadata=client.V1ObjectMeta(name=name), type="istio.io/intermediate-ca", string_data=data
    )


def watched(
    listing: Callable[..., object], namespace: str, **options: object
) -> Iterator[tuple[str, Any]]:
    """Yield what a watch reports: the kind of change and the object."""
    watcher: Any = watch.Watch()  # type: ignore[no-untyped-call]  # the library's has no types
    for event in watcher.stream(listing, namespace, timeout_seconds=TIMEOUT_S, **options):
        yield event["type"], event["object"]


def test_a_token_for_istio_ca_authenticates_when_that_audience_is_reviewed(
    kube: KubeCluster, namespace: str
) -> None:
    token = kube.service_account_token(namespace, "default", audiences=[ISTIO_CA])
    status = review(kube.admin_client(), token, ISTIO_CA)
    assert status.authenticated
    assert status.audiences == [ISTIO_CA]
    assert status.user is not None
    assert status.user.username == f"system:serviceaccount:{namespace}:default"


@pytest.mark.parametrize("reviewed", [(), ("vault",)], ids=["the API's own", "another"])
def test_a_token_for_istio_ca_does_not_authenticate_for(
    kube: KubeCluster, namespace: str, reviewed: tuple[str, ...]
) -> None:
    token = kube.service_account_token(namespace, "default", audiences=[ISTIO_CA])
    assert not review(kube.admin_client(), token, *reviewed).authenticated


def test_a_token_with_a_changed_signature_does_not_authenticate(
    kube: KubeCluster, namespace: str
) -> None:
    head, _, signature = kube.service_account_token(namespace, "default").rpartition(".")
    changed = f"{head}.{'B' if signature[0] == 'A' else 'A'}{signature[1:]}"
    assert not review(kube.admin_client(), changed).authenticated


def test_a_pod_bound_token_names_the_pod_and_its_node_and_dies_with_the_pod(
    kube: KubeCluster, core: client.CoreV1Api, namespace: str
) -> None:
    kube.create_service_account(namespace, "workload")
    pod = kube.create_pod(
        namespace, "app", service_account="workload", node_name="node-1", labels={"app": "app"}
    )
    # Two tokens: a positive review is cached for seconds, so the second is first seen afterwards.
    token, later = (
        kube.service_account_token(namespace, "workload", audiences=[ISTIO_CA], pod="app")
        for _ in range(2)
    )
    user = review(kube.admin_client(), token, ISTIO_CA).user
    assert user is not None
    assert user.extra is not None
    assert user.extra["authentication.kubernetes.io/pod-name"] == ["app"]
    assert pod.metadata is not None
    assert user.extra["authentication.kubernetes.io/pod-uid"] == [pod.metadata.uid]
    assert user.extra["authentication.kubernetes.io/node-name"] == ["node-1"]

    core.delete_namespaced_pod("app", namespace, grace_period_seconds=0)
    assert not review(kube.admin_client(), later, ISTIO_CA).authenticated


def test_the_reviewer_token_may_review_tokens_and_read_no_secret(
    kube: KubeCluster, namespace: str
) -> None:
    settings = client.Configuration(
        host=kube.server,
        ssl_ca_cert=str(kube.ca_file),
        api_key={"authorization": f"Bearer {kube.reviewer_token(namespace)}"},
    )
    with client.ApiClient(settings) as reviewer:
        token = kube.service_account_token(namespace, "default", audiences=["vault"])
        assert review(reviewer, token, "vault").authenticated
        with pytest.raises(client.ApiException) as refusal:
            client.CoreV1Api(reviewer).list_namespaced_secret(namespace)
    assert refusal.value.status == 403


def test_a_service_account_without_roles_is_refused_by_rbac(
    kube: KubeCluster, namespace: str
) -> None:
    kube.create_service_account(namespace, "nobody")
    nobody = kube.client_for_service_account(namespace, "nobody")
    for call in (
        client.CoreV1Api(nobody).list_namespaced_secret,
        client.CoordinationV1Api(nobody).list_namespaced_lease,
    ):
        with pytest.raises(client.ApiException) as refusal:
            call(namespace, _request_timeout=TIMEOUT_S)
        assert refusal.value.status == 403
    with pytest.raises(client.ApiException) as refusal:
        review(nobody, kube.service_account_token(namespace, "nobody"))
    assert refusal.value.status == 403


def test_a_request_without_credentials_is_unauthenticated(kube: KubeCluster) -> None:
    settings = client.Configuration(host=kube.server, ssl_ca_cert=str(kube.ca_file))
    with client.ApiClient(settings) as anonymous, pytest.raises(client.ApiException) as refusal:
        client.CoreV1Api(anonymous).list_namespace(_request_timeout=TIMEOUT_S)
    assert refusal.value.status == 401


def test_the_kubeconfig_file_is_one_that_clients_load(kube: KubeCluster, namespace: str) -> None:
    for path, user in (
        (kube.kubeconfig(), "admin"),
        (kube.kubeconfig("jane"), "jane"),
        (
            kube.service_account_kubeconfig(namespace, "default"),
            f"system:serviceaccount:{namespace}:default",
        ),
    ):
        settings = client.Configuration()
        config.load_kube_config(  # type: ignore[no-untyped-call]  # the library's loader has no types
            str(path), client_configuration=settings
        )
        with client.ApiClient(settings) as loaded:
            answer = client.AuthenticationV1Api(loaded).create_self_subject_review(
                client.V1SelfSubjectReview(), _request_timeout=TIMEOUT_S
            )
        assert answer.status is not None
        assert answer.status.user_info is not None
        assert answer.status.user_info.username == user


def test_every_namespace_gets_the_root_certificate(
    kube: KubeCluster, core: client.CoreV1Api, namespace: str
) -> None:
    for _, config_map in watched(core.list_namespaced_config_map, namespace):
        if config_map.metadata.name == "kube-root-ca.crt":
            assert config_map.data == {"ca.crt": kube.ca_pem}
            return
    pytest.fail("kube-root-ca.crt did not appear")


def test_a_watch_sees_a_secret_made_changed_and_deleted(
    core: client.CoreV1Api, namespace: str
) -> None:
    before = core.list_namespaced_secret(namespace).metadata
    assert before is not None
    core.create_namespaced_secret(namespace, secret("istio-ca-cert", chain="one"))
    core.replace_namespaced_secret("istio-ca-cert", namespace, secret("istio-ca-cert", chain="two"))
    core.delete_namespaced_secret("istio-ca-cert", namespace)
    seen = []
    for kind, found in watched(
        core.list_namespaced_secret, namespace, resource_version=before.resource_version
    ):
        seen.append((kind, base64.b64decode(found.data["chain"])))
        if kind == "DELETED":
            break
    assert seen == [("ADDED", b"one"), ("MODIFIED", b"two"), ("DELETED", b"two")]


def test_a_lease_held_by_another_cannot_be_taken_with_a_stale_version(
    kube: KubeCluster, namespace: str
) -> None:
    leases = client.CoordinationV1Api(kube.admin_client())
    lease = leases.create_namespaced_lease(
        namespace,
        client.V1Lease(
            metadata=client.V1ObjectMeta(name="leader"),
            spec=client.V1LeaseSpec(holder_identity="one", lease_duration_seconds=15),
        ),
    )
    assert lease.spec is not None
    lease.spec.holder_identity = "two"
    leases.replace_namespaced_lease("leader", namespace, lease)
    lease.spec.holder_identity = "three"
    with pytest.raises(client.ApiException) as refusal:
        leases.replace_namespaced_lease("leader", namespace, lease)
    assert refusal.value.status == 409


def test_a_certificate_signing_request_is_approved_and_carries_its_certificate(
    kube: KubeCluster, tmp_path: Path
) -> None:
    requests = client.CertificatesV1Api(kube.admin_client())
    name = f"csr-{os.urandom(4).hex()}"
    request = requests.create_certificate_signing_request(
        client.V1CertificateSigningRequest(
            metadata=client.V1ObjectMeta(name=name),
            spec=client.V1CertificateSigningRequestSpec(
                request=base64.b64encode(a_csr()).decode(),
                signer_name=SIGNER,
                usages=["digital signature", "key encipherment", "server auth", "client auth"],
            ),
        )
    )
    condition = client.V1CertificateSigningRequestCondition(
        type="Approved", status="True", reason="Test"
    )
    request.status = client.V1CertificateSigningRequestStatus(conditions=[condition])
    approved = requests.replace_certificate_signing_request_approval(name, request)
    assert approved.status is not None
    issued = Authority.create(tmp_path).issue_client("leaf", "leaf", []).certificate.read_bytes()
    approved.status.certificate = base64.b64encode(issued).decode()
    requests.replace_certificate_signing_request_status(name, approved)

    read = requests.read_certificate_signing_request(name)
    assert read.status is not None
    assert read.status.certificate is not None
    assert base64.b64decode(read.status.certificate) == issued


def test_a_certificate_signing_request_that_is_no_csr_is_refused(kube: KubeCluster) -> None:
    body = client.V1CertificateSigningRequest(
        metadata=client.V1ObjectMeta(name="not-a-csr"),
        spec=client.V1CertificateSigningRequestSpec(
            request=base64.b64encode(b"tampered").decode(),
            signer_name=SIGNER,
            usages=["client auth"],
        ),
    )
    with pytest.raises(client.ApiException) as refusal:
        client.CertificatesV1Api(kube.admin_client()).create_certificate_signing_request(body)
    assert refusal.value.status == 422


def test_a_server_side_apply_dry_run_answers_the_object_and_stores_nothing(
    core: client.CoreV1Api, namespace: str
) -> None:
    body = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "planned"},
        "data": {"mesh": "yes"},
    }
    answer = core.patch_namespaced_config_map(
        "planned",
        namespace,
        body,
        dry_run="All",
        field_manager="istio-hsm",
        force=True,
        _content_type="application/apply-patch+yaml",
    )
    assert answer.data == {"mesh": "yes"}
    assert answer.metadata is not None
    assert answer.metadata.uid
    with pytest.raises(client.ApiException) as missing:
        core.read_namespaced_config_map("planned", namespace)
    assert missing.value.status == 404


def test_data_and_controllers_survive_a_stop_and_start_of_the_api_server(
    outage: KubeCluster, core: client.CoreV1Api, namespace: str
) -> None:
    core.create_namespaced_secret(namespace, secret("kept", value="here"))
    server = outage.server
    outage.stop_apiserver()
    assert set(outage.pids()) == {"etcd", "kube-controller-manager"}
    with pytest.raises(urllib3.exceptions.HTTPError):
        core.read_namespaced_secret("kept", namespace, _request_timeout=TIMEOUT_S)

    outage.start_apiserver()
    assert outage.server == server
    kept = core.read_namespaced_secret("kept", namespace)
    assert kept.data is not None
    assert kept.data == {"value": base64.b64encode(b"here").decode()}
    outage.create_namespace(f"{namespace}-after")


def test_a_paused_api_server_answers_nothing_until_it_is_resumed(
    outage: KubeCluster, core: client.CoreV1Api
) -> None:
    outage.pause()
    with pytest.raises(urllib3.exceptions.HTTPError):
        core.list_namespace(_request_timeout=0.5)
    outage.resume()
    assert core.list_namespace(_request_timeout=TIMEOUT_S).items


def test_a_running_api_server_is_not_started_twice(kube: KubeCluster) -> None:
    with pytest.raises(ChildError, match="kube-apiserver already runs"):
        kube.start_apiserver()


def test_a_cluster_that_cannot_start_shows_the_log_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = program(tmp_path / "kube-apiserver", "echo no such flag; exit 3")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    binaries = KubeBinaries(program(tmp_path / "etcd", "exec sleep 600"), broken, broken)
    with pytest.raises(ChildError, match=r"not running \(exit 3\)\n(?s:.*)no such flag"):
        KubeCluster(binaries).__enter__()
    assert not list(scratch.iterdir())


def test_children_die_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import os, pathlib, signal, sys, time\n"
        "from tests.support.kube_process import Child\n"
        "child = Child('sleeper', ['sleep', '600'], pathlib.Path(sys.argv[1]))\n"
        "child.start()\n"
        "name = pathlib.Path(f'/proc/{child.pid}/comm')\n"
        "while name.read_text() != 'sleep\\n':\n"
        "    time.sleep(0.01)\n"
        "print(child.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "log")],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 30
    while is_alive(int(ended.stdout)):
        assert time.monotonic() < deadline, "the child outlives its parent"
        time.sleep(0.05)


@pytest.fixture
def bin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the PATH, with what a test puts there; the build cache is empty."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "sleep", "touch"):
        (folder / name).symlink_to(str(shutil.which(name)))
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    return folder


def test_a_kubebuilder_assets_folder_with_all_programs_is_used(
    bin_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("etcd", "kube-apiserver", "kube-controller-manager"):
        program(bin_folder / name, "exit 0")
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(bin_folder))
    assert kube_binaries.resolve() == KubeBinaries(
        bin_folder / "etcd", bin_folder / "kube-apiserver", bin_folder / "kube-controller-manager"
    )


def test_a_kubebuilder_assets_folder_that_lacks_one_is_passed_over_by_name(
    bin_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("etcd", "kube-apiserver"):
        program(bin_folder / name, "exit 0")
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(bin_folder))
    said: list[str] = []
    with pytest.raises(MissingProgramError):
        kube_binaries.resolve(said.append)
    assert said == ["KUBEBUILDER_ASSETS is not used: it lacks kube-controller-manager"]


def test_neither_go_nor_built_programs_is_named_with_a_hint(bin_folder: Path) -> None:
    assert not (bin_folder / "go").exists()
    with pytest.raises(MissingProgramError, match=r"Go is not on PATH .*\nHint: install Go 1\."):
        kube_binaries.resolve()


def test_a_build_runs_once_for_processes_that_ask_at_the_same_time(
    bin_folder: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    # The argument after -o is the folder.
    program(
        bin_folder / "go",
        f'echo x >> {runs}; sleep 1; while [ "$1" != -o ]; do shift; done;'
        ' touch "$2/server" "$2/kube-apiserver" "$2/kube-controller-manager"',
    )
    command = [sys.executable, "-m", "tests.support.kube_binaries"]
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for _ in range(2)
    ]
    folders = {process.communicate(timeout=60)[0].strip() for process in started}
    assert [process.returncode for process in started] == [0, 0]
    assert runs.read_text().split() == ["x"]
    assert [str(kube_binaries.resolve(report=pytest.fail).apiserver.parent)] == list(folders)


def test_a_failed_build_shows_its_output_and_leaves_no_half_result(
    bin_folder: Path, tmp_path: Path
) -> None:
    program(bin_folder / "go", "echo k8s.io/api; echo dial tcp: refused; exit 1")
    with pytest.raises(BuildError, match=r"exit 1:\n(?s:.*)refused\nHint: it needs Go"):
        kube_binaries.resolve(report=lambda _: None)
    assert [path.suffix for path in (tmp_path / "cache/istio-hsm/kube").iterdir()] == [".lock"]


def program(path: Path, script: str) -> Path:
    """Return an executable shell script."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def is_alive(pid: int) -> bool:
    """Return whether the process still runs; a zombie, waiting for init to reap it, does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def a_csr() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
