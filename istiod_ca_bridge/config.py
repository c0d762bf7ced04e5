"""Settings, read once from the environment and validated at once."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal, TypeVar

from istiod_ca_bridge import setting_values as values
from istiod_ca_bridge.ca_key import KeyMode
from istiod_ca_bridge.errors import BridgeError, ConfigError
from istiod_ca_bridge.identity import check_trust_domain
from istiod_ca_bridge.issuance_log import IssuanceLogSettings
from istiod_ca_bridge.istiod_tls import istiod_names
from istiod_ca_bridge.mode import BridgeMode
from istiod_ca_bridge.mode_settings import (
    CsrSettings,
    PlugInSettings,
    absolute_path,
    signer_domain,
    signer_names,
    user_names,
)
from istiod_ca_bridge.policy import TtlPolicy
from istiod_ca_bridge.renewal import RenewalPolicy
from istiod_ca_bridge.setting_values import Address
from istiod_ca_bridge.signer import RSA_BITS, KeyAlgorithm
from istiod_ca_bridge.signing_request import istiod_dns_names
from istiod_ca_bridge.worker_count import worker_count

T = TypeVar("T")


_ISTIO_SYSTEM = "istio-system"
_SERVER_NAMES = "istiod-ca-bridge.istio-system.svc,istiod.istio-system.svc,localhost"


@dataclass(frozen=True, slots=True)
class Config:
    """What `serve` needs to know."""

    mode: BridgeMode
    plug_in: PlugInSettings | None
    """With BRIDGE_MODE=sealed, and only then."""

    csr: CsrSettings | None
    """With BRIDGE_MODE=csr-signer, and only then."""

    store_directory: Path | None
    """None: Kubernetes Secrets."""

    kubeconfig: Path | None
    namespace: str
    plugin_socket: Path
    kek_id: str
    key_mode: KeyMode
    key_algorithm: KeyAlgorithm
    trust_domain: str
    trust_domain_aliases: frozenset[str]
    node_agents: frozenset[tuple[str, str]]
    """Namespace and name of the ServiceAccounts that may ask for others' identities."""

    renewal: RenewalPolicy
    cluster_id: str
    remote_clusters: bool
    listen: Address
    server_names: tuple[str, ...]
    max_connections: int
    max_waiting: int
    workers: int
    """Processes that answer agents."""

    health_listen: Address | None
    metrics_listen: Address | None
    jwks_file: Path | None
    token_issuer: str
    token_audiences: tuple[str, ...]
    review_tokens: bool
    """By the API server; else by JWKS_FILE, or not accepted at all."""

    token_review_cache: timedelta
    ttl: TtlPolicy
    key_blocklist_file: Path | None
    issuance_log: IssuanceLogSettings | None
    crl: bool
    crl_file: Path | None
    root_cert_file: Path | None
    publish_root_cert: bool
    issue_istiod_tls: bool
    istiod_names: tuple[str, ...]
    """DNS names of every revision's istiod."""

    pod_name: str
    pod_uid: str
    """Empty outside a pod."""

    lease_duration: timedelta
    drain_delay: timedelta
    drain: timedelta
    log_format: Literal["text", "json"]
    worker: int = 0
    """Which of several workers this process is; 0 for the bridge itself."""


def read_config(environment: Mapping[str, str] | None = None) -> Config:
    """Return the settings, or raise one ConfigError that names every fault."""
    reader = _Reader(os.environ if environment is None else environment)
    mode = reader.mode()
    config = Config(
        mode=mode,
        plug_in=reader.plug_in() if mode is BridgeMode.SEALED else None,
        csr=reader.csr() if mode is BridgeMode.CSR_SIGNER else None,
        store_directory=reader.store_directory(),
        kubeconfig=reader.optional_path("KUBECONFIG"),
        namespace=reader.one("POD_NAMESPACE", _ISTIO_SYSTEM, values.namespace),
        plugin_socket=reader.one(
            "KEY_MANAGEMENT_ENDPOINT", "/var/run/hsm-socket/.sock", values.socket_path
        ),
        kek_id=reader.one("KEY_MANAGEMENT_KEY_ID", "", values.kek_id),
        key_mode=reader.one(
            "CA_KEY_MODE",
            "sealed" if mode.unwraps_key else "resident",
            KeyMode,
            _choices(KeyMode),
        ),
        key_algorithm=reader.one(
            "CA_KEY_ALGORITHM", "rsa-2048", values.algorithm, _choices(KeyAlgorithm)
        ),
        trust_domain=reader.one("TRUST_DOMAIN", "cluster.local", check_trust_domain),
        trust_domain_aliases=reader.one("TRUST_DOMAIN_ALIASES", "", values.trust_domains),
        node_agents=reader.one("CA_TRUSTED_NODE_ACCOUNTS", "", values.accounts),
        renewal=reader.one("CA_RENEW_BEFORE", "33%", values.renewal_policy),
        cluster_id=reader.text("CLUSTER_ID", "Kubernetes"),
        remote_clusters=reader.choice("REMOTE_CLUSTERS", "false", "true") == "true",
        listen=reader.one("CA_LISTEN", "0.0.0.0:15012", values.address),
        server_names=reader.one("CA_SERVER_NAMES", _SERVER_NAMES, values.dns_names),
        max_connections=reader.one("CA_MAX_CONNECTIONS", "4096", values.count, "1 to 100000"),
        max_waiting=reader.one("CA_MAX_WAITING", "4096", values.count, "1 to 100000"),
        workers=reader.one("CA_WORKERS", "1", worker_count, "1 to 32, or auto"),
        health_listen=reader.optional("HEALTH_LISTEN", values.address),
        metrics_listen=reader.optional("METRICS_LISTEN", values.address),
        jwks_file=reader.optional_path("JWKS_FILE"),
        token_issuer=reader.text("TOKEN_ISSUER", ""),
        token_audiences=values.listed(reader.text("TOKEN_AUDIENCES", "istio-ca")),
        review_tokens=reader.review_tokens(),
        token_review_cache=reader.one("TOKEN_REVIEW_CACHE", "10s", values.cache_time, "0 to 60s"),
        ttl=TtlPolicy(
            default=reader.one("DEFAULT_WORKLOAD_CERT_TTL", "24h", values.lifetime),
            maximum=reader.one("MAX_WORKLOAD_CERT_TTL", "2160h", values.lifetime),
            clamp=reader.choice("WORKLOAD_CERT_TTL_POLICY", "reject", "clamp") == "clamp",
            jitter=reader.one("WORKLOAD_CERT_TTL_JITTER", "5%", values.fraction, "0% to 50%"),
        ),
        key_blocklist_file=reader.optional_path("KEY_BLOCKLIST_FILE"),
        issuance_log=reader.issuance_log(),
        crl=reader.choice("CA_CRL", "false", "true") == "true",
        crl_file=reader.optional_path("CRL_FILE"),
        root_cert_file=reader.optional_path("ROOT_CERT_FILE"),
        issue_istiod_tls=reader.in_cluster_only("ISTIOD_TLS"),
        istiod_names=reader.one("ISTIO_REVISIONS", "", reader.istiod_names),
        publish_root_cert=reader.in_cluster_only("PUBLISH_ROOT_CERT"),
        pod_name=reader.text("POD_NAME", ""),
        pod_uid=reader.text("POD_UID", ""),
        lease_duration=reader.one(
            "LEADER_LEASE_DURATION", "15s", values.lease_duration, "3s to 5m"
        ),
        drain_delay=reader.one(
            "DRAIN_DELAY", "5s" if reader.in_kubernetes() else "0s", values.duration
        ),
        drain=reader.one("DRAIN_DURATION", "10s", values.duration),
        log_format=reader.log_format(),
    )
    reader.check_together(config)
    reader.check_workers(config)
    reader.finish()
    return config


def read_health_address(environment: Mapping[str, str] | None = None) -> Address | None:
    """Return where `serve` answers about its health; None when it was not told to."""
    reader = _Reader(os.environ if environment is None else environment)
    address = reader.optional("HEALTH_LISTEN", values.address)
    reader.finish()
    return address


class _Reader:
    """Reads variables one by one and gathers what is wrong with them."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._faults: list[str] = []

    def text(self, name: str, default: str) -> str:
        return self._environment.get(name, "").strip() or default

    def one(self, name: str, default: str, parse: Callable[[str], T], wanted: str = "") -> T:
        text = self.text(name, default)
        try:
            return parse(text)
        except (ValueError, BridgeError) as error:
            self._faults.append(
                f"{name} must be {wanted}, not {text!r}" if wanted else f"{name}: {error}"
            )
            return _UNREADABLE  # type: ignore[return-value]  # never used: finish() raises

    def optional(self, name: str, parse: Callable[[str], T]) -> T | None:
        return self.one(name, "", parse) if self.text(name, "") else None

    def optional_path(self, name: str) -> Path | None:
        text = self.text(name, "")
        return Path(text) if text else None

    def choice(self, name: str, *choices: str) -> str:
        """Return one of the choices, the first by default."""
        text = self.text(name, choices[0])
        if text not in choices:
            self._faults.append(f"{name} must be {' or '.join(choices)}, not {text!r}")
        return text

    def issuance_log(self) -> IssuanceLogSettings | None:
        path = self.optional_path("ISSUANCE_LOG")
        when_failing = self.choice("ISSUANCE_LOG_WHEN_FAILING", "refuse", "issue")
        settings = IssuanceLogSettings(
            path=path or Path(),
            max_bytes=self.one(
                "ISSUANCE_LOG_MAX_BYTES", "104857600", values.file_size, "4096 or more"
            ),
            checkpoint_every=self.one(
                "ISSUANCE_LOG_CHECKPOINT", "1000", values.count, "1 to 100000"
            ),
            issue_without=when_failing == "issue",
        )
        if path is not None and not path.absolute().parent.is_dir():
            self._faults.append(f"ISSUANCE_LOG: {path.parent} is not a directory")
        return settings if path is not None else None

    def store_directory(self) -> Path | None:
        kind = self.text("BRIDGE_STORE", "kubernetes")
        directory = self.optional_path("BRIDGE_STORE_DIR")
        if kind not in {"kubernetes", "directory"}:
            self._faults.append(f"BRIDGE_STORE must be kubernetes or directory, not {kind!r}")
        elif kind == "directory" and directory is None:
            self._faults.append("BRIDGE_STORE_DIR is not set")
        elif kind == "directory" and directory is not None and not directory.is_dir():
            self._faults.append(f"BRIDGE_STORE_DIR: {directory} is not a directory")
        return directory if kind == "directory" else None

    def in_kubernetes(self) -> bool:
        return self.text("BRIDGE_STORE", "kubernetes") == "kubernetes"

    def in_cluster_only(self, name: str) -> bool:
        """Return a switch that can be on in Kubernetes only, and is where agents come to us."""
        in_kubernetes = self.in_kubernetes()
        switch = self.switch(name, default=in_kubernetes and self.mode().answers_agents)
        if switch and not in_kubernetes:
            self._faults.append(f"{name}=true needs BRIDGE_STORE=kubernetes")
        return switch

    def switch(self, name: str, *, default: bool) -> bool:
        text = self.text(name, "true" if default else "false")
        if text not in {"true", "false"}:
            self._faults.append(f"{name} must be true or false, not {text!r}")
        return text == "true"

    def mode(self) -> BridgeMode:
        text = self.text("BRIDGE_MODE", BridgeMode.CA_SERVER.value)
        try:
            return BridgeMode(text)
        except ValueError:
            self._faults.append(f"BRIDGE_MODE must be {_choices(BridgeMode)}, not {text!r}")
            return BridgeMode.CA_SERVER

    def plug_in(self) -> PlugInSettings:
        directory = self.one("CA_PLUG_IN_DIR", "", absolute_path)
        at_exit = self.text("CA_PLUG_IN_AT_EXIT", "keep")
        if at_exit not in {"keep", "wipe"}:
            self._faults.append(f"CA_PLUG_IN_AT_EXIT must be keep or wipe, not {at_exit!r}")
        return PlugInSettings(
            directory=directory,
            allow_disk=self.switch("CA_PLUG_IN_ALLOW_DISK", default=False),
            wipe_on_exit=at_exit == "wipe",
        )

    def csr(self) -> CsrSettings:
        namespace = self.text("POD_NAMESPACE", _ISTIO_SYSTEM)
        services = self.one("ISTIO_REVISIONS", "", self.istiod_names)
        accounts = ",".join(f"{namespace}/{name.partition('.')[0]}" for name in _known(services))
        domain = self.one("CERT_SIGNER_DOMAIN", "", signer_domain)
        names = self.one("CERT_SIGNER_NAMES", "", lambda text: signer_names(values.listed(text)))
        return CsrSettings(
            signers=tuple(f"{domain}/{name}" for name in _known(names)),
            requestors=self.one(
                "CSR_REQUESTORS", accounts, lambda text: user_names(values.listed(text))
            ),
            dns_names=istiod_dns_names(namespace, _known(services))
            | frozenset(_known(self.one("CSR_DNS_NAMES", "", values.dns_names))),
        )

    def istiod_names(self, revisions: str) -> tuple[str, ...]:
        return istiod_names(self.text("POD_NAMESPACE", _ISTIO_SYSTEM), values.listed(revisions))

    def review_tokens(self) -> bool:
        with_keys = bool(self.text("JWKS_FILE", ""))
        asked = self.in_kubernetes() and self.mode().answers_agents
        default = "kubernetes" if asked and not with_keys else "off"
        kind = self.text("TOKEN_REVIEW", default)
        if kind not in {"kubernetes", "off"}:
            self._faults.append(f"TOKEN_REVIEW must be kubernetes or off, not {kind!r}")
        elif kind == "kubernetes" and with_keys:
            self._faults.append("TOKEN_REVIEW=kubernetes and JWKS_FILE exclude each other")
        return kind == "kubernetes"

    def log_format(self) -> Literal["text", "json"]:
        text = self.text("LOG_FORMAT", "text")
        if text not in {"text", "json"}:
            self._faults.append(f"LOG_FORMAT must be text or json, not {text!r}")
        return "json" if text == "json" else "text"

    def check_workers(self, config: Config) -> None:
        if config.workers in (1, _UNREADABLE) or config.mode.answers_agents:
            return
        self._faults.append(
            f"CA_WORKERS={config.workers} is for modes that answer agents, "
            f"and BRIDGE_MODE={config.mode.value} does not"
        )

    def check_together(self, config: Config) -> None:
        if config.mode.unwraps_key and config.key_mode is KeyMode.RESIDENT:
            self._faults.append(f"BRIDGE_MODE={config.mode.value} needs CA_KEY_MODE=sealed")
        if not config.mode.answers_agents and config.health_listen is None:
            self._faults.append(
                f"BRIDGE_MODE={config.mode.value} needs HEALTH_LISTEN, for there is no CA_LISTEN"
            )
        if config.key_mode is KeyMode.SEALED and config.key_algorithm not in (
            *RSA_BITS,
            _UNREADABLE,
        ):
            self._faults.append("CA_KEY_MODE=sealed needs an RSA CA_KEY_ALGORITHM")
        if config.remote_clusters and (config.store_directory or not config.review_tokens):
            self._faults.append(
                "REMOTE_CLUSTERS=true needs BRIDGE_STORE=kubernetes and TOKEN_REVIEW=kubernetes"
            )
        if config.crl_file and not config.crl:
            self._faults.append("CRL_FILE needs CA_CRL=true")
        if not config.token_audiences:
            self._faults.append("TOKEN_AUDIENCES names no audience")
        if config.node_agents and config.store_directory and not config.review_tokens:
            self._faults.append("CA_TRUSTED_NODE_ACCOUNTS needs a Kubernetes API")
        if config.jwks_file is not None and not config.token_issuer:
            self._faults.append("TOKEN_ISSUER is not set, and JWKS_FILE is")
        ttl = config.ttl
        if _UNREADABLE not in (ttl.default, ttl.maximum) and ttl.default > ttl.maximum:
            self._faults.append("DEFAULT_WORKLOAD_CERT_TTL is over MAX_WORKLOAD_CERT_TTL")

    def finish(self) -> None:
        if self._faults:
            raise ConfigError(
                "; ".join(dict.fromkeys(self._faults)), hint="see `istiod-ca-bridge serve --help`"
            )


_UNREADABLE: object = object()


def _known(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return none for names that could not be read; finish() raises."""
    return () if names is _UNREADABLE else names


def _choices(kind: type[KeyMode | KeyAlgorithm | BridgeMode]) -> str:
    return "one of " + ", ".join(entry.value for entry in kind)
