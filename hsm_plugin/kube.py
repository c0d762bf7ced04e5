"""Kubernetes Secrets that hold wrapped DEKs; the only user of the Kubernetes client."""

import json
import re
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import urllib3.exceptions
from kubernetes import client, config

from hsm_plugin.errors import BadRequestError, HsmPluginError
from hsm_plugin.kek_rotation import ChangedError

_TIMEOUT_SECONDS = (5, 30)
"""To connect, to answer."""
_JSON = "application/json"
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", re.ASCII)
_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


@dataclass(frozen=True, slots=True)
class DekSecret:
    """One Secret, replaced at its resourceVersion: all of its keys, or none."""

    api: client.ApiClient
    namespace: str
    secret: str

    @property
    def name(self) -> str:
        """Return kind, namespace and name."""
        return f"Secret {self.namespace}/{self.secret}"

    def read(self) -> bytes:
        """See Source."""
        status, content = self._send("GET", None)
        if status == HTTPStatus.NOT_FOUND:
            raise BadRequestError(
                f"{self.name} does not exist", hint="name it as NAMESPACE/NAME; see --context"
            )
        return self._checked(status, content, "read")

    def replace(self, old: bytes, new: bytes) -> None:
        """See Source: the API server compares the resourceVersion that both contents hold."""
        del old
        status, content = self._send("PUT", new)
        if status == HTTPStatus.CONFLICT:
            raise ChangedError(f"{self.name} was changed in the meantime")
        self._checked(status, content, "replace")

    def _checked(self, status: int, content: bytes, doing: str) -> bytes:
        if status == HTTPStatus.OK:
            return content
        verb = "update" if doing == "replace" else "get"
        raise HsmPluginError(
            f"the API server answers {status} when asked to {doing} {self.name}",
            hint=f"kubectl auth can-i {verb} secret/{self.secret} -n {self.namespace}",
        )

    def _send(self, method: str, body: bytes | None) -> tuple[int, bytes]:
        host = str(self.api.configuration.host)
        request = self.api.param_serialize(
            method,
            f"/api/v1/namespaces/{self.namespace}/secrets/{self.secret}",
            header_params={"Accept": _JSON, "Content-Type": _JSON},
            body=None if body is None else json.loads(body),  # encoded again by the client
            auth_settings=["BearerToken"],
        )
        try:
            response = self.api.call_api(*request, _request_timeout=_TIMEOUT_SECONDS)
            content: bytes = response.read() or b""  # type: ignore[no-untyped-call] # untyped driver
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise HsmPluginError(
                f"the API server {host} cannot be reached: {type(error).__name__}",
                hint="check --kubeconfig, --context and the network",
            ) from None
        return response.status, content


def connect(kubeconfig: Path | None, context: str | None) -> client.ApiClient:
    """Return a client: of the kubeconfig, or of this pod's service account where there is one."""
    settings = client.Configuration()
    try:
        if kubeconfig is None and context is None and _SERVICE_ACCOUNT.exists():
            config.load_incluster_config(client_configuration=settings)  # type: ignore[no-untyped-call] # no types
        else:
            config.load_kube_config(  # type: ignore[no-untyped-call] # the loader has no types
                None if kubeconfig is None else str(kubeconfig),
                context=context,
                client_configuration=settings,
                persist_config=False,
            )
    except (config.ConfigException, OSError, ValueError) as error:
        raise BadRequestError(
            f"no cluster to talk to: {error}", hint="name one with --kubeconfig and --context"
        ) from None
    settings.retries = False
    return client.ApiClient(settings)


def secret(api: client.ApiClient, text: str) -> DekSecret:
    """Return the Secret of NAMESPACE/NAME."""
    namespace, slash, name = text.partition("/")
    parts = (namespace, name)
    if not slash or not all(_NAME.fullmatch(part) for part in parts):
        raise BadRequestError(
            f"{text!r} is not the name of a Secret", hint="write it as NAMESPACE/NAME"
        )
    return DekSecret(api, namespace, name)
