"""The Kubernetes API; the only user of its client."""

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Literal

import urllib3.exceptions
from kubernetes import client, config

from istio_hsm_installer.errors import KubeError, KubeUnreachableError
from istio_hsm_installer.objects import Document, Ref, entries, ref_of, section

FIELD_MANAGER = "istio-hsm"
_TIMEOUT_SECONDS = (5, 30)
"""To connect, to answer."""

_APPLY = "application/apply-patch+yaml"
_JSON = "application/json"
_MERGE = "application/merge-patch+json"
_MAX_SAID = 300

Method = Literal["GET", "POST", "PATCH", "DELETE"]


class Cluster:
    """One cluster, as one kubeconfig context sees it."""

    def __init__(self, api: client.ApiClient) -> None:
        self._api = api

    @property
    def server(self) -> str:
        """The API server's URL in the kubeconfig."""
        return str(self._api.configuration.host)

    def read(self, ref: Ref) -> Document | None:
        """Return the object; None when it does not exist."""
        status, answer = self._send("GET", ref.path)
        return (
            None if status == HTTPStatus.NOT_FOUND else self._checked(status, answer, f"read {ref}")
        )

    def list(self, ref: Ref, selector: str = "", fields: str = "") -> Sequence[Document]:
        """Return the objects of a collection, by their labels or by fields of theirs."""
        asked = {"labelSelector": selector, "fieldSelector": fields}
        query = {name: value for name, value in asked.items() if value}
        status, answer = self._send("GET", ref.path, query)
        return entries(self._checked(status, answer, f"list {ref.plural}"), "items")

    def preview(self, document: Document) -> Document | None:
        """Return what the object would be (server-side dry run); None without its namespace."""
        status, answer = self._apply(document, {"dryRun": "All"})
        if status == HTTPStatus.NOT_FOUND:
            return None
        return self._checked(status, answer, f"accept {ref_of(document)}")

    def apply(self, document: Document) -> Document:
        """Return the object after a server-side apply that takes over conflicting fields."""
        status, answer = self._apply(document, {})
        return self._checked(status, answer, f"apply {ref_of(document)}")

    def create(self, document: Document) -> bool:
        """Return False when the object exists already, and leave it."""
        collection = Ref(str(document["kind"]), "", ref_of(document).namespace)
        status, answer = self._send("POST", collection.path, body=document)
        if status == HTTPStatus.CONFLICT:
            return False
        self._checked(status, answer, f"create {ref_of(document)}")
        return True

    def patch(self, ref: Ref, changes: Document) -> Document:
        """Return the object after a JSON merge patch."""
        status, answer = self._send("PATCH", ref.path, body=changes, content_type=_MERGE)
        return self._checked(status, answer, f"change {ref}")

    def delete(self, ref: Ref) -> bool:
        """Return whether there was something to delete."""
        status, answer = self._send("DELETE", ref.path, {"propagationPolicy": "Background"})
        if status == HTTPStatus.NOT_FOUND:
            return False
        self._checked(status, answer, f"delete {ref}")
        return True

    def may(self, verb: str, ref: Ref) -> bool:
        """Return whether this user may (SelfSubjectAccessReview)."""
        attributes = {
            "verb": verb,
            "group": ref.group,
            "resource": ref.plural,
            "namespace": ref.namespace or "",
        }
        status, answer = self._send(
            "POST",
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            body={
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": attributes},
            },
        )
        reviewed = self._checked(status, answer, "review our rights")
        return section(reviewed, "status").get("allowed") is True

    def token(self, account: Ref, audience: str) -> str:
        """Return a ServiceAccount's token for an audience, good for an hour."""
        status, answer = self._send(
            "POST",
            f"{account.path}/token",
            body={
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenRequest",
                "spec": {"audiences": [audience], "expirationSeconds": 3600},
            },
        )
        made = self._checked(status, answer, f"give a token of {account}")
        return str(section(made, "status").get("token", ""))

    def version(self) -> str:
        """Return the server's version, such as v1.36.1."""
        status, answer = self._send("GET", "/version")
        return str(self._checked(status, answer, "tell its version").get("gitVersion", ""))

    def log(self, pod: Ref, container: str, max_bytes: int) -> str:
        """Return the beginning of a container's log; empty while it has none."""
        query = {"container": container, "limitBytes": str(max_bytes)}
        status, text, _ = self._exchange("GET", f"{pod.path}/log", query, None, _JSON)
        return text if status == HTTPStatus.OK else ""

    def last_log(
        self, pod: Ref, container: str, lines: int, max_bytes: int, *, previous: bool
    ) -> str | None:
        """Return the end of a container's log, or of the one before it; None without one."""
        query = {"container": container, "tailLines": str(lines), "timestamps": "true"}
        if previous:
            query["previous"] = "true"
        status, text, _ = self._exchange("GET", f"{pod.path}/log", query, None, _JSON)
        return text[-max_bytes:] if status == HTTPStatus.OK else None

    def date(self) -> str:
        """Return the Date header of an answer, empty when there is none."""
        return self._exchange("GET", "/version", {}, None, _JSON)[2]

    def _apply(self, document: Document, query: Mapping[str, str]) -> tuple[int, Document]:
        asked = {"fieldManager": FIELD_MANAGER, "force": "true", **query}
        return self._send("PATCH", ref_of(document).path, asked, document, _APPLY)

    def _send(
        self,
        method: Method,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Document | None = None,
        content_type: str = _JSON,
    ) -> tuple[int, Document]:
        status, text, _ = self._exchange(method, path, query or {}, body, content_type)
        try:
            answer = json.loads(text)
        except ValueError:
            answer = {}
        return status, answer if isinstance(answer, dict) else {}

    def _exchange(
        self,
        method: Method,
        path: str,
        query: Mapping[str, str],
        body: Document | None,
        content_type: str,
    ) -> tuple[int, str, str]:
        request = self._api.param_serialize(
            method,
            path,
            query_params=list(query.items()),
            header_params={"Accept": _JSON, **({"Content-Type": content_type} if body else {})},
            body=body,
            auth_settings=["BearerToken"],
        )
        try:
            response = self._api.call_api(*request, _request_timeout=_TIMEOUT_SECONDS)
            content: bytes = response.read() or b""  # type: ignore[no-untyped-call]  # untyped driver
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise KubeUnreachableError(
                f"the API server {self.server} cannot be reached: {_reason(error)}",
                hint="check --context, the network, and the kubeconfig's certificates",
            ) from None
        return (
            response.status,
            content.decode(errors="replace"),
            str(response.getheader("Date") or ""),  # type: ignore[no-untyped-call]  # as above,
        )

    def _checked(self, status: int, answer: Document, what: str) -> Document:
        if status < HTTPStatus.MULTIPLE_CHOICES:
            return answer
        said = str(answer.get("message", ""))[:_MAX_SAID]
        hints: dict[int, str] = {
            HTTPStatus.UNAUTHORIZED: "log in again: the kubeconfig's credentials are not accepted",
            HTTPStatus.FORBIDDEN: "ask for that right, or run: istio-hsm check",
            HTTPStatus.UNPROCESSABLE_ENTITY: "the object as it stands cannot be changed so",
        }
        raise KubeError(
            f"the API server refuses to {what}: {said or status}",
            hint=hints.get(status, "see the API server's log"),
        )


def connect(kubeconfig: Path | None, context: str | None) -> Cluster:
    """Return the cluster of a kubeconfig's context; KubeError when there is none."""
    settings = client.Configuration()
    try:
        config.load_kube_config(  # type: ignore[no-untyped-call]  # the loader has no types
            None if kubeconfig is None else str(kubeconfig),
            context=context,
            client_configuration=settings,
            persist_config=False,
        )
    except (config.ConfigException, OSError, ValueError) as error:
        raise KubeUnreachableError(
            f"no cluster to talk to: {error}", hint="name one with --kubeconfig and --context"
        ) from None
    except Exception as error:  # noqa: BLE001 - what the loader raises about a file that is none
        raise KubeUnreachableError(
            f"no cluster to talk to: the kubeconfig cannot be read ({type(error).__name__})",
            hint="name one with --kubeconfig and --context; try: kubectl config view",
        ) from None
    settings.retries = False
    return Cluster(client.ApiClient(settings))


def _reason(error: BaseException) -> str:
    reason = getattr(error, "reason", None) or error
    return type(reason).__name__
