"""A Vault or OpenBao server, as its operator; the only user of hvac.

The environment has no say: neither proxies nor CA bundles nor tokens are taken from it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from ssl import SSLCertVerificationError
from typing import Literal, Protocol

import requests
from hvac.adapters import RawAdapter

from istio_hsm_installer.config import Secret
from istio_hsm_installer.errors import VaultError, VaultForbiddenError, VaultRejectedError
from istio_hsm_installer.objects import Document, section

_TIMEOUT_SECONDS = 20.0
_MAX_SAID = 300
_HEALTHY = (HTTPStatus.OK, HTTPStatus.TOO_MANY_REQUESTS)

Method = Literal["get", "post", "put", "delete", "list"]


class _Adapter(Protocol):
    """What of hvac's untyped adapter is used."""

    def request(
        self, method: str, url: str, *, raise_exception: bool, json: Document | None
    ) -> requests.Response: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Health:
    """What a server says of itself without a token."""

    is_initialized: bool
    is_sealed: bool
    date: str
    """The Date header, empty when there is none."""


class Vault:
    """One server, trusted through one CA file, with one token."""

    def __init__(
        self, address: str, *, ca_file: Path, namespace: str | None, token: Secret | None
    ) -> None:
        self._address = address
        session = requests.Session()
        session.trust_env = False
        session.verify = str(ca_file)
        self._adapter: _Adapter = RawAdapter(  # type: ignore[no-untyped-call]  # hvac has no types
            base_uri=address,
            token=token.text() if token else None,
            session=session,
            timeout=_TIMEOUT_SECONDS,
            allow_redirects=False,
            namespace=namespace,
        )

    def close(self) -> None:
        """Drop the connections."""
        self._adapter.close()

    def read(self, path: str) -> Document | None:
        """Return the data at the path; None when there is nothing, or no such mount."""
        status, answer = self._send("get", path)
        if status == HTTPStatus.NOT_FOUND:
            return None
        self._check(status, answer, f"read {path}")
        return section(answer, "data")

    def mounts(self, kind: Literal["mounts", "auth"]) -> Mapping[str, Document]:
        """Return the mounts by path, with the slash at its end."""
        found = self.read(f"sys/{kind}") or {}
        return {path: entry for path, entry in found.items() if isinstance(entry, Mapping)}

    def names(self, path: str) -> tuple[str, ...]:
        """Return the names below the path."""
        status, answer = self._send("list", path)
        if status == HTTPStatus.NOT_FOUND:
            return ()
        self._check(status, answer, f"list {path}")
        keys = section(answer, "data").get("keys")
        return tuple(map(str, keys)) if isinstance(keys, list) else ()

    def write(self, path: str, body: Document) -> None:
        """Write; VaultError, which quotes nothing of the body, when it is refused."""
        status, answer = self._send("post", path, body)
        self._check(status, answer, f"write {path}")

    def delete(self, path: str) -> None:
        """Return when there is nothing at the path any more."""
        status, answer = self._send("delete", path)
        if status != HTTPStatus.NOT_FOUND:
            self._check(status, answer, f"delete {path}")

    def health(self) -> Health:
        """Return whether the server can serve."""
        response = self._exchange("get", "sys/health", None)
        body = _json(response)
        is_known = response.status_code in _HEALTHY
        return Health(
            is_initialized=is_known or body.get("initialized") is True,
            is_sealed=not is_known and body.get("sealed") is not False,
            date=str(response.headers.get("date", "")),
        )

    def _send(
        self, method: Method, path: str, body: Document | None = None
    ) -> tuple[int, Document]:
        response = self._exchange(method, path, body)
        return response.status_code, _json(response)

    def _exchange(self, method: Method, path: str, body: Document | None) -> requests.Response:
        try:
            return self._adapter.request(method, f"/v1/{path}", raise_exception=False, json=body)
        except requests.exceptions.SSLError as error:
            raise VaultError(
                f"Vault at {self._address} could not prove who it is: {_tls_reason(error)}",
                hint="give the CA that issued its certificate in vault.caFile; "
                "if it is said to be expired or not yet valid, compare the clocks",
            ) from None
        except requests.exceptions.RequestException as error:
            raise VaultError(
                f"Vault at {self._address} cannot be reached: {type(error).__name__}",
                hint="check vault.address and the network",
            ) from None
        except OSError:
            raise VaultError(
                "the file in vault.caFile cannot be used", hint="it must be PEM certificates"
            ) from None

    def _check(self, status: int, answer: Document, what: str) -> None:
        if status < HTTPStatus.MULTIPLE_CHOICES:
            return
        errors = answer.get("errors")
        said = "; ".join(map(str, errors)) if isinstance(errors, list) else ""
        text = f"Vault refuses to {what}: {said[:_MAX_SAID].strip() or status}"
        if status == HTTPStatus.FORBIDDEN:
            raise VaultForbiddenError(
                text, hint="log in with a token that may, and give it by --vault-token-file"
            )
        if status == HTTPStatus.BAD_REQUEST:
            raise VaultRejectedError(text, hint="look at the Vault server's own log at this time")
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            raise VaultError(text, hint="unseal it: bao operator unseal")
        if status < HTTPStatus.BAD_REQUEST:
            raise VaultError(
                f"Vault at {self._address} redirects to another node",
                hint="set vault.address to the active node or to a load balancer",
            )
        raise VaultError(text, hint="look at the Vault server's own log at this time")


def _json(response: requests.Response) -> Document:
    try:
        body = response.json()
    except requests.exceptions.JSONDecodeError:
        return {}
    return body if isinstance(body, dict) else {}


def _tls_reason(error: BaseException) -> str:
    """Return the reason nearest to the cause, as urllib3 and requests nest them."""
    seen: list[BaseException] = []
    queue: list[object] = [error]
    while queue:
        item = queue.pop()
        if not isinstance(item, BaseException) or item in seen:
            continue
        if isinstance(item, SSLCertVerificationError):
            return item.verify_message
        seen.append(item)
        queue += [item.__cause__, item.__context__, getattr(item, "reason", None), *item.args]
    return "the TLS handshake failed"
