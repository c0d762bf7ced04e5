"""What the process can be told: plain frozen values, already judged."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Literal

from vault_client.delivery import FileNames, Permissions
from vault_client.errors import Cause
from vault_client.policy import Policy


@dataclass(frozen=True, slots=True)
class KubernetesLogin:
    """A login with a service account's token, at a kubernetes or a jwt mount."""

    mount: str
    role: str
    jwt_path: Path
    audience: str | None


@dataclass(frozen=True, slots=True)
class AppRoleLogin:
    """A login with two ids, each in a file of its own."""

    mount: str
    role_id_path: Path
    secret_id_path: Path


@dataclass(frozen=True, slots=True)
class TokenFileLogin:
    """No login: a token that somebody else obtains and keeps in a file."""

    token_path: Path


Login = KubernetesLogin | AppRoleLogin | TokenFileLogin


@dataclass(frozen=True, slots=True)
class CaFile:
    """The CA certificates that alone are trusted, in a PEM file."""

    path: Path


@dataclass(frozen=True, slots=True)
class CaConfigMap:
    """The same under the key `cert` of a ConfigMap; None stands for the pod's own namespace."""

    name: str
    namespace: str | None
    api_server: str
    service_account: Path


CaSource = CaFile | CaConfigMap | None


@dataclass(frozen=True, slots=True)
class HttpAddress:
    """Where health and metrics are served."""

    host: str
    port: int


class TrialMode(Enum):
    """Whether the plugin tries a new set's PIN before the set is published."""

    OFF = "off"
    AUTO = "auto"
    """A set that could not be tried is published."""
    REQUIRED = "required"
    """A set that could not be tried waits, unless none is in place."""


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """The plugin that is asked about each new set and told of it, and how long it may take."""

    socket: Path
    timeout_seconds: float
    trial: TrialMode


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that the process is told from outside."""

    address: str
    namespace: str | None
    ca: CaSource
    login: Login
    kv_path: str
    names: FileNames
    output: Path
    permissions: Permissions
    allow_disk: bool
    poll_seconds: float
    retry_cap_seconds: float
    ca_refresh_seconds: float
    request_timeout_seconds: float
    once_timeout_seconds: float
    policies: Mapping[Cause, Policy]
    wipe_on_exit: bool
    http: HttpAddress | None
    acknowledgement: Acknowledgement | None


@dataclass(frozen=True, slots=True)
class LogConfig:
    """How events are written."""

    form: Literal["text", "json"]
    level: str
