"""A real Kubernetes API for tests: no kubelet and no scheduler, so pods exist but never run."""

import base64
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from kubernetes import client

from tests.support import kube_binaries
from tests.support.kube_control_plane import ControlPlane, client_certificate
from tests.support.kube_pki import KeyPairFiles

_START_DEADLINE_S = 90.0
_OBJECT_DEADLINE_S = 60.0
_REQUEST_TIMEOUT_S = 30
_TOKEN_ROLE = "system:auth-delegator"


class KubeCluster:
    """A control plane that starts on enter and is gone, with its folder, on exit."""

    def __init__(self, binaries: kube_binaries.KubeBinaries | None = None) -> None:
        self._binaries = binaries
        self._cleanup = ExitStack()
        self._plane: ControlPlane | None = None
        self._admin: client.ApiClient | None = None
        self.start_seconds = 0.0
        """How long the start took, from the first process to the default ServiceAccount."""

    def __enter__(self) -> Self:
        binaries = self._binaries or kube_binaries.resolve()
        started = time.monotonic()
        with self._cleanup:
            folder = Path(tempfile.mkdtemp(prefix="kube-"))
            self._cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
            self._plane = ControlPlane(binaries, folder)
            self._cleanup.callback(self._plane.kill)
            self._plane.start(_START_DEADLINE_S)
            self._wait_for_service_account("default", "default")
            self._cleanup = self._cleanup.pop_all()
        self.start_seconds = time.monotonic() - started
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._cleanup.close()

    # Where it is and who may call it

    @property
    def server(self) -> str:
        return self._running.server

    @property
    def ca_file(self) -> Path:
        return self._running.authority.certificate_file

    @property
    def ca_pem(self) -> str:
        return self.ca_file.read_text()

    def kubeconfig(self, user: str = "admin", groups: Sequence[str] = ()) -> Path:
        """Return a kubeconfig with a client certificate; `admin` may do anything."""
        files = self._client_certificate(user, groups)
        return self._running.write_kubeconfig(files.key.stem, client_certificate(files))

    def service_account_kubeconfig(
        self, namespace: str, name: str, *, expiration_seconds: int = 3600
    ) -> Path:
        """Return a kubeconfig with a ServiceAccount's token, good for an hour."""
        token = self.service_account_token(namespace, name, expiration_seconds=expiration_seconds)
        return self._running.write_kubeconfig(f"{namespace}.{name}", {"token": token})

    def admin_client(self) -> client.ApiClient:
        """Return the client of `admin`, the same one each time."""
        if self._admin is None:
            files = self._client_certificate("admin", ())
            self._admin = self._client(cert_file=str(files.certificate), key_file=str(files.key))
        return self._admin

    def client_for_service_account(self, namespace: str, name: str) -> client.ApiClient:
        """Return a new client with a ServiceAccount's token, closed with the cluster."""
        token = self.service_account_token(namespace, name)
        return self._client(api_key={"authorization": f"Bearer {token}"})

    def service_account_token(
        self,
        namespace: str,
        name: str,
        *,
        audiences: Sequence[str] = (),
        expiration_seconds: int = 3600,
        pod: str | None = None,
    ) -> str:
        """Return a token by the TokenRequest API, for the API server when no audience is named.

        The API refuses fewer than 600 seconds. A token bound to a pod names the pod and its node,
        and dies with it.
        """
        bound = client.V1BoundObjectReference(api_version="v1", kind="Pod", name=pod)
        request = client.AuthenticationV1TokenRequest(
            spec=client.V1TokenRequestSpec(
                audiences=list(audiences),
                expiration_seconds=expiration_seconds,
                bound_object_ref=bound if pod else None,
            )
        )
        answer = self._core.create_namespaced_service_account_token(
            name, namespace, request, _request_timeout=_REQUEST_TIMEOUT_S
        )
        if answer.status is None or not answer.status.token:
            raise RuntimeError(f"no token in the answer for {namespace}/{name}")
        return answer.status.token

    def reviewer_token(self, namespace: str) -> str:
        """Return a token of the default ServiceAccount that may review tokens and does not expire.

        Made as Vault's auth method needs it: a ClusterRoleBinding to system:auth-delegator and a
        Secret of type kubernetes.io/service-account-token. The namespace must exist.
        """
        rbac = client.RbacAuthorizationV1Api(self.admin_client())
        rbac.create_cluster_role_binding(
            client.V1ClusterRoleBinding(
                metadata=client.V1ObjectMeta(name=f"role-tokenreview-binding-{namespace}"),
                role_ref=client.V1RoleRef(
                    api_group="rbac.authorization.k8s.io", kind="ClusterRole", name=_TOKEN_ROLE
                ),
                subjects=[
                    client.RbacV1Subject(kind="ServiceAccount", name="default", namespace=namespace)
                ],
            ),
            _request_timeout=_REQUEST_TIMEOUT_S,
        )
        secret = client.V1Secret(
            metadata=client.V1ObjectMeta(
                name="default-token",
                annotations={"kubernetes.io/service-account.name": "default"},
            ),
            type="kubernetes.io/service-account-token",
        )
        self._core.create_namespaced_secret(namespace, secret, _request_timeout=_REQUEST_TIMEOUT_S)
        self._running.wait_until(
            f"the token of {namespace}/default-token is filled in",
            lambda: bool(self._secret_token(namespace, "default-token")),
            _OBJECT_DEADLINE_S,
        )
        return self._secret_token(namespace, "default-token")

    # What is in it

    def create_namespace(self, name: str) -> None:
        """Return when the namespace and its default ServiceAccount exist."""
        body = client.V1Namespace(metadata=client.V1ObjectMeta(name=name))
        self._core.create_namespace(body, _request_timeout=_REQUEST_TIMEOUT_S)
        self._wait_for_service_account(name, "default")

    def create_service_account(self, namespace: str, name: str) -> None:
        body = client.V1ServiceAccount(metadata=client.V1ObjectMeta(name=name))
        self._core.create_namespaced_service_account(
            namespace, body, _request_timeout=_REQUEST_TIMEOUT_S
        )

    def create_pod(
        self,
        namespace: str,
        name: str,
        *,
        service_account: str = "default",
        node_name: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> client.V1Pod:
        """Return a Pending pod that nothing will run; its node need not exist."""
        body = client.V1Pod(
            metadata=client.V1ObjectMeta(name=name, labels=dict(labels or {})),
            spec=client.V1PodSpec(
                service_account_name=service_account,
                node_name=node_name,
                containers=[client.V1Container(name="app", image="example.test/app:1")],
            ),
        )
        return self._core.create_namespaced_pod(
            namespace, body, _request_timeout=_REQUEST_TIMEOUT_S
        )

    # Outages

    def pause(self) -> None:
        """Freeze the API server: it accepts connections and answers none until resume()."""
        self._running.pause_apiserver()

    def resume(self) -> None:
        self._running.resume_apiserver()

    def stop_apiserver(self) -> None:
        """Return when the API server's port refuses connections."""
        self._running.stop_apiserver()

    def start_apiserver(self) -> None:
        """Return when the API server is ready again, with the same port and data."""
        self._running.start_apiserver(_START_DEADLINE_S)

    def pids(self) -> Mapping[str, int]:
        """Return the running processes by name."""
        return self._running.pids()

    def logs(self, lines: int = 30) -> str:
        """Return the tail of every process's log."""
        return self._running.logs(lines)

    @property
    def _running(self) -> ControlPlane:
        if self._plane is None:
            raise RuntimeError("the cluster is not started: use it in a with statement")
        return self._plane

    @property
    def _core(self) -> client.CoreV1Api:
        return client.CoreV1Api(self.admin_client())

    def _client_certificate(self, user: str, groups: Sequence[str]) -> KeyPairFiles:
        groups = ["system:masters"] if user == "admin" else groups
        stem = f"user-{user.replace(':', '-')}"
        return self._running.authority.issue_client(stem, user, groups)

    def _client(
        self,
        *,
        cert_file: str | None = None,
        key_file: str | None = None,
        api_key: dict[str, str] | None = None,
    ) -> client.ApiClient:
        settings = client.Configuration(
            host=self.server,
            ssl_ca_cert=str(self.ca_file),
            cert_file=cert_file,
            key_file=key_file,
            api_key=api_key,
        )
        settings.proxy = None
        made = client.ApiClient(settings)
        self._cleanup.callback(made.close)
        return made

    def _secret_token(self, namespace: str, name: str) -> str:
        """Return the token in a Secret, empty while there is none."""
        secret = self._core.read_namespaced_secret(
            name, namespace, _request_timeout=_REQUEST_TIMEOUT_S
        )
        return base64.b64decode((secret.data or {}).get("token", "")).decode()

    def _wait_for_service_account(self, namespace: str, name: str) -> None:
        def exists() -> bool:
            accounts = self._core.list_namespaced_service_account(
                namespace,
                field_selector=f"metadata.name={name}",
                _request_timeout=_REQUEST_TIMEOUT_S,
            )
            return bool(accounts.items)

        self._running.wait_until(
            f"ServiceAccount {namespace}/{name} exists", exists, _OBJECT_DEADLINE_S
        )
