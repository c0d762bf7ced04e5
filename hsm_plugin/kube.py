"""Kubernetes Secrets that hold wrapped DEKs, over plain HTTPS with a service account's token.

The Kubernetes client library would be the largest part of this package's image, for two requests.
"""

import http.client
import json
import re
import ssl
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from hsm_plugin.errors import BadRequestError, HsmPluginError
from hsm_plugin.kek_rotation import ChangedError

_TIMEOUT_SECONDS = 10.0
_MAX_BYTES = 4 << 20
"""More than the API server takes for a Secret."""
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Api:
    """An API server, and who asks it."""

    address: str
    """Host and port."""
    service_account: Path
    """The folder with `token` and `ca.crt`."""

    def send(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        """Return status and content of the answer."""
        headers = {"Accept": "application/json", "Authorization": f"Bearer {self._token()}"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            context = ssl.create_default_context(cafile=str(self.service_account / "ca.crt"))
            connection = http.client.HTTPSConnection(
                self.address, timeout=_TIMEOUT_SECONDS, context=context
            )
            try:
                connection.request(method, path, body, headers)
                response = connection.getresponse()
                return response.status, response.read(_MAX_BYTES)
            finally:
                connection.close()
        except (OSError, http.client.HTTPException) as error:
            raise HsmPluginError(
                f"the API server {self.address} cannot be reached: {type(error).__name__}",
                hint="check --api-server, --service-account and the network, or send the Secret "
                "through a pipe: kubectl get secret ... -o json | hsm-plugin rotate-kek ... -",
            ) from None

    def _token(self) -> str:
        try:
            token = (self.service_account / "token").read_text("ascii").strip()
        except (OSError, UnicodeDecodeError):
            token = ""
        if not token or not token.isprintable():  # http.client would quote it in its error
            raise BadRequestError(
                f"{self.service_account} holds no token of a service account",
                hint="mount one, or send the Secret through a pipe: "
                "kubectl get secret ... -o json | hsm-plugin rotate-kek ... -",
            )
        return token


@dataclass(frozen=True, slots=True)
class DekSecret:
    """One Secret, replaced at its resourceVersion: all of its keys, or none."""

    api: Api
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
                f"{self.name} does not exist", hint="name it as NAMESPACE/NAME; see --api-server"
            )
        return self._checked(status, content, "read")

    def replace(self, old: bytes, new: bytes) -> None:
        """See Source: the API server compares the resourceVersion that both contents hold."""
        if _version(old) != _version(new):
            raise HsmPluginError(f"{self.name} came without the version that it had")
        status, content = self._send("PUT", new)
        if status == HTTPStatus.CONFLICT:
            raise ChangedError(f"{self.name} was changed in the meantime")
        self._checked(status, content, "replace")

    def _send(self, method: str, body: bytes | None) -> tuple[int, bytes]:
        path = f"/api/v1/namespaces/{self.namespace}/secrets/{self.secret}"
        return self.api.send(method, path, body)

    def _checked(self, status: int, content: bytes, doing: str) -> bytes:
        if status == HTTPStatus.OK:
            return content
        verb = "update" if doing == "replace" else "get"
        raise HsmPluginError(
            f"the API server answers {status} when asked to {doing} {self.name}",
            hint=f"allow the service account to {verb} it: kubectl create role kek-rotation "
            f"--verb=get,update --resource=secrets --resource-name={self.secret} "
            f"-n {self.namespace}, and bind it",
        )


def secret(api: Api, text: str) -> DekSecret:
    """Return the Secret of NAMESPACE/NAME."""
    namespace, slash, name = text.partition("/")
    if not slash or not all(_NAME.fullmatch(part) for part in (namespace, name)):
        raise BadRequestError(
            f"{text!r} is not the name of a Secret", hint="write it as NAMESPACE/NAME"
        )
    return DekSecret(api, namespace, name)


def _version(content: bytes) -> str:
    """Return the resourceVersion; HsmPluginError without one: then nothing would be compared."""
    try:
        version = json.loads(content)["metadata"]["resourceVersion"]
    except (ValueError, KeyError, TypeError):
        version = None
    if not isinstance(version, str) or not version:
        raise HsmPluginError(
            "the API server answered a Secret without a resourceVersion", hint="see --api-server"
        )
    return version
