"""Real Envoys on loopback, set up as Istio sets up sidecars: mutual TLS, SPIFFE, files for SDS."""

import http.client
import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tests.support.kube_process import dying_with_parent
from tests.support.plugin import program

CERTIFICATE, TRUST = "default", "ROOTCA"
"""The names of the two secrets that a sidecar asks its agent for."""

PEER_HEADER = "x-peer"
_TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3"
_TCP = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
_HTTP = (
    "type.googleapis.com/envoy.extensions.filters.network"
    ".http_connection_manager.v3.HttpConnectionManager"
)
_ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
_SECONDS = 30.0
_HOST = "127.0.0.1"
Json = dict[str, Any]


class EnvoyError(RuntimeError):
    """Envoy did not do what was awaited; the message ends with its log."""


class Holder(Protocol):
    """A workload's key and the CA's answer: leaf, intermediates, roots last."""

    @property
    def chain(self) -> tuple[str, ...]: ...

    @property
    def key_pem(self) -> bytes: ...


class SecretFiles:
    """What an agent hands its Envoy: each secret is replaced whole, and Envoy takes it up."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)

    def certify(self, holder: Holder) -> None:
        """Hand over a key with its certificates, the root left out."""
        chain = "".join(holder.chain[:-1])
        certificate = {"inline_string": chain}
        key = {"inline_string": holder.key_pem.decode()}
        pair = {"certificate_chain": certificate, "private_key": key}
        self._put(CERTIFICATE, {"tls_certificate": pair})

    def trust(self, roots: str, *, crl: Path | None = None) -> None:
        """Hand over the roots, and the file of the revocation lists as Istio's agent names it."""
        context: Json = {"trusted_ca": {"inline_string": roots}}
        if crl is not None:
            context["crl"] = {"filename": str(crl)}
        self._put(TRUST, {"validation_context": context})

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _put(self, name: str, content: Json) -> None:
        secret = {"@type": f"{_TLS}.Secret", "name": name} | content
        new = self.folder / f".{name}.new"
        new.touch(mode=0o600)
        new.write_text(json.dumps({"resources": [secret]}))
        new.rename(self.path(name))


@dataclass(frozen=True, slots=True)
class Envoy:
    """A running Envoy with one listener."""

    folder: Path
    process: subprocess.Popen[bytes]
    admin: str
    address: str

    @property
    def log(self) -> str:
        return (self.folder / "envoy.log").read_text(errors="replace")

    def counters(self, pattern: str) -> dict[str, int]:
        """Return the counters whose names end so, by that end; of this Envoy's one TLS context."""
        reply = json.loads(_get(self.admin, f"/stats?format=json&filter={pattern}"))
        found: dict[str, int] = {}
        for entry in reply["stats"]:
            if "value" in entry and (".ssl." in entry["name"] or "sds." in entry["name"]):
                end = entry["name"].rpartition(".")[2]
                found[end] = found.get(end, 0) + int(entry["value"])
        return found

    def failures(self) -> dict[str, int]:
        """Return how many handshakes failed, by why."""
        names = "ssl\\.(connection_error|fail_verify_error|fail_verify_san|fail_verify_no_cert)$"
        return {name: count for name, count in self.counters(names).items() if count}

    def updates(self, name: str) -> int:
        """Return how often a secret was taken up."""
        reply = json.loads(_get(self.admin, f"/stats?format=json&filter=sds.{name}.update_success"))
        return sum(int(entry["value"]) for entry in reply["stats"] if "value" in entry)

    def serves(self, serial: int) -> bool:
        """Tell whether the certificate of that serial is in use."""
        served = json.loads(_get(self.admin, "/certs"))["certificates"]
        return any(
            int(it["serial_number"], 16) == serial
            for entry in served
            for it in entry["cert_chain"][:1]
        )

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Return once the condition holds."""
        _wait(self.process, self.folder / "envoy.log", condition, what)


@contextmanager
def server_sidecar(folder: Path, secrets: SecretFiles, trust_domain: str) -> Iterator[Envoy]:
    """Envoy before a server: it takes mutual TLS of its trust domain, and tells who came."""
    tls = {
        "@type": f"{_TLS}.DownstreamTlsContext",
        "require_client_certificate": True,
        "common_tls_context": _common(secrets, {"prefix": f"spiffe://{trust_domain}/"}),
    }
    answer = {
        "name": "here",
        "virtual_hosts": [
            {
                "name": "all",
                "domains": ["*"],
                "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 200}}],
            }
        ],
        "response_headers_to_add": [
            {"header": {"key": PEER_HEADER, "value": "%DOWNSTREAM_PEER_URI_SAN%"}}
        ],
    }
    manager = {
        "@type": _HTTP,
        "stat_prefix": "inbound",
        "route_config": answer,
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": _ROUTER}}],
    }
    chain = {
        "filters": [
            {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
        ],
        "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": tls},
    }
    with _running(folder, {"listeners": [_listener(chain)]}) as envoy:
        yield envoy


@contextmanager
def client_sidecar(
    folder: Path, secrets: SecretFiles, server: Envoy, identity: str
) -> Iterator[Envoy]:
    """Envoy before a client: each connection to it is one mutual TLS connection to the server."""
    tls = {
        "@type": f"{_TLS}.UpstreamTlsContext",
        "sni": "outbound_.80_._.server.shop.svc.cluster.local",
        "common_tls_context": _common(secrets, {"exact": identity}),
    }
    host, _, port = server.address.rpartition(":")
    endpoint = {"address": {"socket_address": {"address": host, "port_value": int(port)}}}
    cluster = {
        "name": "server",
        "type": "STATIC",
        "connect_timeout": "10s",
        "load_assignment": {
            "cluster_name": "server",
            "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}],
        },
        "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": tls},
    }
    proxy = {"@type": _TCP, "stat_prefix": "outbound", "cluster": "server"}
    chain = {"filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}]}
    resources = {"listeners": [_listener(chain)], "clusters": [cluster]}
    with _running(folder, resources) as envoy:
        yield envoy


def peer_seen(client: Envoy) -> str | None:
    """Open a new connection through both Envoys; return whom the server saw, None if refused."""
    try:
        return _answer(client.address, "/").getheader(PEER_HEADER)
    except (http.client.HTTPException, ConnectionError):
        return None


def _common(secrets: SecretFiles, identity: Mapping[str, str]) -> Json:
    def source(name: str) -> Json:
        path = {"path": str(secrets.path(name))}
        return {"name": name, "sds_config": {"path_config_source": path}}

    return {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
        "alpn_protocols": ["http/1.1"],
        "tls_certificate_sds_secret_configs": [source(CERTIFICATE)],
        "combined_validation_context": {
            "default_validation_context": {
                "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": dict(identity)}]
            },
            "validation_context_sds_secret_config": source(TRUST),
        },
    }


def _listener(chain: Json) -> Json:
    address = {"socket_address": {"address": _HOST, "port_value": 0}}
    return {"name": "here", "address": address, "filter_chains": [chain]}


@contextmanager
def _running(folder: Path, resources: Json) -> Iterator[Envoy]:
    folder.mkdir(parents=True, exist_ok=True)
    bootstrap = {
        "node": {"id": folder.name, "cluster": "mesh"},
        "admin": {"address": {"socket_address": {"address": _HOST, "port_value": 0}}},
        "static_resources": resources,
    }
    path, told, log = (folder / name for name in ("envoy.json", "admin.txt", "envoy.log"))
    path.write_text(json.dumps(bootstrap))
    options = ["--disable-hot-restart", "--concurrency", "1", "-l", "warning"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            dying_with_parent(
                [program("envoy"), "-c", str(path), "--admin-address-path", str(told), *options]
            ),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait(process, log, lambda: told.exists() and ":" in told.read_text(), "admin address")
        admin = told.read_text().strip()
        _wait(process, log, lambda: bool(_listening(admin)), "listener")
        yield Envoy(folder, process, admin, _listening(admin)[0])
    finally:
        process.terminate()
        try:
            process.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _listening(admin: str) -> Sequence[str]:
    """Return the addresses that are listened on, once all is warm."""
    if json.loads(_get(admin, "/server_info"))["state"] != "LIVE":
        return ()
    statuses = json.loads(_get(admin, "/listeners?format=json")).get("listener_statuses", ())
    found = [entry["local_address"]["socket_address"] for entry in statuses]
    return [f"{it['address']}:{it['port_value']}" for it in found]


def _get(address: str, path: str) -> bytes:
    return _answer(address, path).read()


def _answer(address: str, path: str) -> http.client.HTTPResponse:
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        return connection.getresponse()
    finally:
        connection.close()


def _wait(
    process: subprocess.Popen[bytes], log: Path, condition: Callable[[], bool], what: str
) -> None:
    end = time.monotonic() + _SECONDS
    while not condition():
        if process.poll() is not None:
            raise EnvoyError(f"exit {process.returncode} before {what}\n{log.read_text()}")
        if time.monotonic() >= end:
            raise EnvoyError(f"no {what} within {_SECONDS} s\n{log.read_text()}")
        time.sleep(0.02)
