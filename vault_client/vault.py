"""A Vault or OpenBao server over HTTPS: the only user of hvac.

Every call is synchronous, bounded by timeouts, and answers with our own types and errors. The
environment has no say: neither proxies nor CA bundles nor tokens are taken from it.
"""

import json
import os
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from ssl import SSLCertVerificationError
from typing import Literal, Protocol
from urllib.parse import urlsplit

import requests
from hvac.adapters import RawAdapter

from vault_client.answers import Answer, Grant, grant_of, mapping, number, retry_after
from vault_client.diagnosis import MEND_CLOCK, Reason
from vault_client.errors import (
    DeadlineError,
    DeliveryError,
    ForbiddenError,
    MissingError,
    RateLimitedError,
    RejectedError,
    SealedError,
    ServerError,
    TlsError,
    UnreachableError,
)
from vault_client.kv import KvMount, KvSecret, absent, values_of, version_of
from vault_client.secret import Secret
from vault_client.time_limit import TimeLimit

Method = Literal["get", "post"]

_LARGEST_ANSWER_BYTES = 4 << 20
"""More than the storage of a server takes for a secret."""
_PIECE_BYTES = 64 << 10
_LIMIT_OF_A_REQUEST = 2
"""In timeouts: one to connect, one to answer."""


class _Adapter(Protocol):
    """What of hvac's untyped adapter is used."""

    token: str | None
    base_uri: str

    def request(
        self,
        method: str,
        url: str,
        *,
        raise_exception: bool,
        json: Mapping[str, str] | None,
        stream: bool,
    ) -> requests.Response: ...

    def close(self) -> None: ...


_UNTIMELY = {9: Reason.CLOCK, 10: Reason.EXPIRED}
"""X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED, as OpenSSL numbers them."""


class Vault:
    """One server, trusted through one set of CA certificates."""

    def __init__(
        self, address: str, *, namespace: str | None, ca_pem: bytes | None, timeout_seconds: float
    ) -> None:
        self._address = address
        self._ca_file = None if ca_pem is None else _in_memory(ca_pem)
        session = requests.Session()
        session.trust_env = False
        session.verify = True if self._ca_file is None else f"/proc/self/fd/{self._ca_file}"
        self._limit = TimeLimit(session, _LIMIT_OF_A_REQUEST * timeout_seconds)
        self._adapter: _Adapter = RawAdapter(  # type: ignore[no-untyped-call]  # hvac has no types
            base_uri=address,
            session=session,
            timeout=timeout_seconds,
            allow_redirects=False,
            namespace=namespace,
        )
        self.clock_ahead_seconds: float | None = None
        """How far the server's clock is ahead of ours, from its last Date header."""

    def close(self) -> None:
        """Drop the connections."""
        self._adapter.close()
        if self._ca_file is not None:
            os.close(self._ca_file)
            self._ca_file = None

    def login(self, mount: str, body: Mapping[str, Secret | str]) -> Grant:
        """Return the token that a login at the mount yields."""
        return grant_of(self._call("post", f"auth/{mount}/login", body=_plain(body)))

    def login_status(self, mount: str, body: Mapping[str, str]) -> int:
        """Return the HTTP status of a login that cannot succeed, to learn why a real one fails."""
        return self._send("post", f"auth/{mount}/login", body=body).status

    def renew(self, token: Secret) -> Grant:
        """Return the token with its renewed life."""
        return grant_of(self._call("post", "auth/token/renew-self", token))

    def look_up(self, token: Secret) -> Grant:
        """Return the token with what is left of its life."""
        data = self._call("get", "auth/token/lookup-self", token).section("data")
        return Grant(token, number(data.get("ttl")), data.get("renewable") is True)

    def revoke(self, token: Secret) -> None:
        """End the token's life, and with it every lease under it."""
        self._call("post", "auth/token/revoke-self", token)

    def kv_mount(self, token: Secret, secret_path: str) -> KvMount:
        """Return the KV mount that the path lies in."""
        answer = self._call("get", f"sys/internal/ui/mounts/{secret_path}", token)
        data = answer.section("data")
        options = mapping(data.get("options"))
        version: Literal[1, 2] = 2 if options.get("version") == "2" else 1
        if data.get("type") not in {"kv", "generic"}:
            raise MissingError(
                f"{data.get('path')} is a mount of type {data.get('type')}, not kv",
                hint="set VAULT_KV_PATH to a path in a KV mount: bao secrets list",
            )
        return KvMount(str(data.get("path")), version)

    def read(self, token: Secret, mount: KvMount, secret_path: str) -> KvSecret:
        """Return the newest version of the secret."""
        path = mount.read_path(secret_path)
        answer = self._send("get", path, token)
        if answer.status == HTTPStatus.NOT_FOUND:
            raise absent(path, answer.section("data"))
        data = self._checked(answer, path).section("data")
        version = None
        if mount.version == 2:  # noqa: PLR2004 - KV version 2 wraps the values and counts
            version = version_of(mapping(data.get("metadata")))
            data = mapping(data.get("data"))
        return KvSecret(values_of(data), version)

    def granted_paths(self, token: Secret) -> Mapping[str, frozenset[str]]:
        """Return what the token's policies grant: capabilities by path, globs ending in `*`."""
        data = self._call("get", "sys/internal/ui/resultant-acl", token).section("data")
        granted: dict[str, frozenset[str]] = {}
        for kind, suffix in (("exact_paths", ""), ("glob_paths", "*")):
            for path, rule in mapping(data.get(kind)).items():
                capabilities = mapping(rule).get("capabilities")
                names = capabilities if isinstance(capabilities, list) else []
                granted[path + suffix] = frozenset(str(name) for name in names)
        return granted

    def _call(
        self,
        method: Method,
        path: str,
        token: Secret | None = None,
        body: Mapping[str, str] | None = None,
    ) -> Answer:
        return self._checked(self._send(method, path, token, body), path)

    def _send(
        self,
        method: Method,
        path: str,
        token: Secret | None = None,
        body: Mapping[str, str] | None = None,
    ) -> Answer:
        self._adapter.token = token.reveal().decode() if token else None
        try:
            response, content = self._exchanged(method, path, body)
        finally:
            self._adapter.token = None
            self._adapter.base_uri = self._address  # the active node may be another next time
        self._note_clock(response.headers.get("date"))
        return Answer(
            response.status_code,
            _json_object(content),
            retry_after(response.headers.get("retry-after"), datetime.now(UTC)),
        )

    def _exchanged(
        self, method: Method, path: str, body: Mapping[str, str] | None
    ) -> tuple[requests.Response, bytes]:
        """Return the answer and what it holds, all of which came in time."""
        with self._limit.running() as exchange:
            try:
                answered = self._followed(method, path, body)
            except requests.exceptions.RequestException as error:
                raise (self._late() if exchange.is_cut else self._unanswered(error)) from None
            except ValueError:  # of urllib.parse, for requests reads where a redirect leads
                raise ServerError(
                    "Vault redirects to what is no address",
                    hint="check api_addr in the Vault server's configuration",
                ) from None
        if exchange.is_cut:  # what was cut may look like an end
            raise self._late()
        return answered

    def _followed(
        self, method: Method, path: str, body: Mapping[str, str] | None
    ) -> tuple[requests.Response, bytes]:
        response = self._request(method, path, body)
        if response.is_redirect:
            response.close()
            self._adapter.base_uri = self._active_node(response.headers["location"])
            response = self._request(method, path, body)
        with response:
            return response, self._content(response)

    def _request(
        self, method: Method, path: str, body: Mapping[str, str] | None
    ) -> requests.Response:
        return self._adapter.request(
            method, f"/v1/{path}", raise_exception=False, json=body, stream=True
        )

    def _content(self, response: requests.Response) -> bytes:
        """Return the body; ServerError when it is larger than any of Vault's."""
        content = bytearray()
        for piece in response.iter_content(_PIECE_BYTES):
            content += piece
            if len(content) > _LARGEST_ANSWER_BYTES:
                raise ServerError(
                    f"{self._address} answers more than {_LARGEST_ANSWER_BYTES} bytes",
                    hint="check VAULT_ADDR: this may be another server",
                )
        return bytes(content)

    def _checked(self, answer: Answer, path: str) -> Answer:
        status, said = answer.status, answer.complaint()
        if status < HTTPStatus.MULTIPLE_CHOICES:
            return answer
        if status == HTTPStatus.FORBIDDEN:
            raise ForbiddenError(f"Vault answers 403 to {path}: {said}")
        if status == HTTPStatus.BAD_REQUEST:
            raise RejectedError(f"Vault answers 400 to {path}: {said}")
        if status == HTTPStatus.NOT_FOUND:
            raise MissingError(
                f"Vault answers 404 to {path}",
                hint="check VAULT_ADDR and VAULT_NAMESPACE: this may be another server",
            )
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            raise RateLimitedError(
                f"Vault answers 429 to {path}: too many requests",
                hint="raise its rate limit quota, or POLL_INTERVAL here",
                retry_after_seconds=answer.retry_after_seconds,
            )
        if status == HTTPStatus.SERVICE_UNAVAILABLE and self._sealed():
            raise SealedError(
                "Vault is sealed or not initialised",
                hint="unseal it: bao operator unseal",
                retry_after_seconds=answer.retry_after_seconds,
            )
        raise ServerError(
            f"Vault answers {status} to {path}: {said}",
            hint="look at the Vault server's own log at this time",
            retry_after_seconds=answer.retry_after_seconds,
        )

    def _sealed(self) -> bool:
        try:
            status = self._send("get", "sys/seal-status")
        except DeliveryError:
            return False
        return status.body.get("sealed") is True or status.body.get("initialized") is False

    def _active_node(self, location: str) -> str:
        parts = urlsplit(location)
        if parts.scheme != urlsplit(self._address).scheme or not parts.netloc:
            raise ServerError(
                "Vault redirects to another scheme, which is not followed",
                hint="check api_addr in the Vault server's configuration",
            )
        return f"{parts.scheme}://{parts.netloc}"

    def _note_clock(self, date: str | None) -> None:
        if date is not None:
            try:
                theirs = parsedate_to_datetime(date).timestamp()
            except ValueError:
                return
            self.clock_ahead_seconds = theirs - time.time()

    def _unanswered(self, error: requests.exceptions.RequestException) -> DeliveryError:
        """Return our error for one of requests', the nearest to its cause."""
        if isinstance(error, requests.exceptions.SSLError):
            return self._distrusted(error)
        if isinstance(error, requests.exceptions.Timeout):
            return self._late()
        return UnreachableError(
            f"no connection to {self._address}",
            hint="check that Vault listens there and that no network policy is in between",
        )

    def _late(self) -> DeadlineError:
        return DeadlineError(
            f"no answer from {self._address} in time",
            hint="check the network path and REQUEST_TIMEOUT",
        )

    def _distrusted(self, error: BaseException) -> TlsError:
        found = next((e for e in _chain(error) if isinstance(e, SSLCertVerificationError)), None)
        said = found.verify_message if found else "the TLS handshake failed"
        reason = _UNTIMELY.get(found.verify_code) if found else None
        if reason is not None:
            return TlsError(
                f"{self._address} could not prove who it is: {said}, "
                f"and it is {datetime.now(UTC).isoformat(timespec='seconds')} here",
                hint=f"if that time is wrong, {MEND_CLOCK}; if it is right, renew the certificate",
                reason=reason.value,
            )
        return TlsError(
            f"{self._address} could not prove who it is: {said}",
            hint="give the CA that issued its certificate in VAULT_CACERT or VAULT_AUTH_CERT_CM",
        )


def _plain(body: Mapping[str, Secret | str]) -> Mapping[str, str]:
    return {
        name: value.reveal().decode() if isinstance(value, Secret) else value
        for name, value in body.items()
    }


def _in_memory(pem: bytes) -> int:
    """Return a descriptor of a nameless file, for an API that takes CA certificates by path."""
    handle = os.memfd_create("vault-ca", os.MFD_CLOEXEC)
    os.write(handle, pem)
    return handle


def _json_object(content: bytes) -> Mapping[str, object]:
    try:
        return mapping(json.loads(content))
    except (ValueError, RecursionError):
        return {}


def _chain(error: BaseException) -> list[BaseException]:
    """Return the error and everything it wraps, as urllib3 and requests nest them."""
    found: list[BaseException] = []
    queue: list[object] = [error]
    while queue:
        item = queue.pop()
        if isinstance(item, BaseException) and item not in found:
            found.append(item)
            queue += [item.__cause__, item.__context__, getattr(item, "reason", None), *item.args]
    return found
