"""The settings, read from the environment once, frozen, and judged all together.

Every mistake is reported at once, each with a line that says how to mend it.
"""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from vault_client.delivery import FileNames, Permissions
from vault_client.errors import Cause, ConfigError
from vault_client.files import MANIFEST
from vault_client.policy import DEFAULT_POLICIES, Policy
from vault_client.settings import (
    Acknowledgement,
    AppRoleLogin,
    CaConfigMap,
    CaFile,
    CaSource,
    Config,
    HttpAddress,
    KubernetesLogin,
    LogConfig,
    Login,
    TokenFileLogin,
    TrialMode,
)

_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_LONGEST_NUMBER = 32
"""Characters of a duration; more is no number that anybody means."""

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_FILE_MODES = {"0400": 0o400, "0440": 0o440, "0600": 0o600, "0640": 0o640}
_LONGEST_PLUGIN_TIMEOUT_SECONDS = 30.0
_BOOLEANS = {"true": True, "false": False, "1": True, "0": False}

T = TypeVar("T")


class _Reader:
    """Collects the mistakes while the values are read."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self.mistakes: list[tuple[str, str]] = []

    def mistake(self, message: str, hint: str) -> None:
        self.mistakes.append((message, hint))

    def text(self, name: str, default: str | None = None) -> str | None:
        return self._environment.get(name, "").strip() or default

    def required(self, name: str, hint: str) -> str:
        value = self.text(name)
        if value is None:
            self.mistake(f"{name} is not set", hint)
        return value or ""

    def parsed(self, name: str, default: T, parse: Callable[[str], T | None], hint: str) -> T:
        value = self.text(name)
        if value is None:
            return default
        result = parse(value)
        if result is None:
            self.mistake(f"{name} is {value!r}", hint)
            return default
        return result

    def duration(self, name: str, default: float) -> float:
        return self.parsed(
            name, default, parse_duration, "write a duration such as 500ms, 30s, 15m"
        )

    def choice(self, name: str, default: str, choices: Mapping[str, T]) -> T:
        hint = f"use one of {', '.join(choices)}"
        return self.parsed(name, choices[default], lambda value: choices.get(value.lower()), hint)

    def path(self, name: str, default: Path | None = None) -> Path | None:
        value = self.text(name)
        return Path(value) if value else default


def load(environment: Mapping[str, str] = os.environ) -> Config:
    """Return the settings, or raise one ConfigError that names every mistake."""
    read = _Reader(environment)
    config = Config(
        address=_address(read),
        namespace=read.text("VAULT_NAMESPACE"),
        ca=_ca(read),
        login=_login(read),
        kv_path=_kv_path(read),
        names=_names(read),
        output=Path(read.required("OUTPUT_DIR", "e.g. OUTPUT_DIR=/var/run/hsm-credential")),
        permissions=_permissions(read),
        allow_disk=read.choice("VAULT_CLIENT_ALLOW_DISK", "false", _BOOLEANS),
        poll_seconds=read.duration("POLL_INTERVAL", 60.0),
        retry_cap_seconds=read.duration("RETRY_MAX_INTERVAL", 60.0),
        ca_refresh_seconds=read.duration("CA_REFRESH_INTERVAL", 300.0),
        request_timeout_seconds=read.duration("REQUEST_TIMEOUT", 5.0),
        once_timeout_seconds=read.duration("ONCE_TIMEOUT", 120.0),
        policies=_policies(read),
        wipe_on_exit=read.choice("ON_EXIT", "keep", {"keep": False, "wipe": True}),
        http=read.parsed(
            "HEALTH_ADDR",
            HttpAddress("127.0.0.1", 8281),
            _http_address,
            "write host:port, e.g. 127.0.0.1:8281",
        )
        if read.text("HEALTH_ADDR") != "off"
        else None,
        acknowledgement=_acknowledgement(read),
    )
    if read.mistakes:
        (first, hint), *others = read.mistakes
        more = [f"\nerror: {message}\nhint: {advice}" for message, advice in others]
        raise ConfigError(first, hint="".join([hint, *more]))
    return config


def load_logging(environment: Mapping[str, str] = os.environ) -> LogConfig:
    """Return how to log; a value that is not known falls back, `load` need not have succeeded."""
    form = environment.get("LOG_FORMAT", "text").strip().lower()
    level = environment.get("LOG_LEVEL", "info").strip().upper()
    return LogConfig(
        form="json" if form == "json" else "text",
        level=level if level in {"DEBUG", "INFO", "WARNING", "ERROR"} else "INFO",
    )


def parse_duration(text: str) -> float | None:
    """Return the seconds of a duration like 1m30s, or None if it is none."""
    parts = _DURATION.findall(text) if len(text) <= _LONGEST_NUMBER else []
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    return seconds if seconds > 0 else None


def parse_policy(text: str) -> Policy | None:
    """Return the policy that `keep`, `wipe` or `grace=<duration>` names, or None."""
    if text == "keep":
        return Policy()
    if text == "wipe":
        return Policy(0.0)
    name, _, value = text.partition("=")
    grace = parse_duration(value)
    return Policy(grace) if name == "grace" and grace is not None else None


def mount_of(path: str) -> str:
    """Return the auth mount in `auth/<mount>/login`, `<mount>` or anything between."""
    path = f"{path.strip('/')}/".removeprefix("v1/").removeprefix("auth/")
    return path.removesuffix("/login/").strip("/")


def _address(read: _Reader) -> str:
    address = read.required("VAULT_ADDR", "e.g. VAULT_ADDR=https://vault.example.com:8200")
    if not address:
        return address
    plain = read.choice("VAULT_ALLOW_PLAINTEXT", "false", _BOOLEANS)
    try:
        parts = urlsplit(address)
        sound = bool(parts.hostname) and parts.port != 0 and not parts.query
        sound = sound and "@" not in parts.netloc  # a password would be in each log line
    except ValueError:
        sound = False
        parts = urlsplit("")
    if not sound or parts.scheme not in {"https", "http"}:
        read.mistake(
            "VAULT_ADDR is not the URL of a server",
            "e.g. VAULT_ADDR=https://vault.example.com:8200",
        )
    elif parts.scheme == "http" and not plain:
        read.mistake(
            "VAULT_ADDR is plaintext http, which shows tokens and secrets to the network",
            "use https, or set VAULT_ALLOW_PLAINTEXT=true for a test on loopback",
        )
    return address.rstrip("/")


def _ca(read: _Reader) -> CaSource:
    file, config_map = read.path("VAULT_CACERT"), read.text("VAULT_AUTH_CERT_CM")
    if file and config_map:
        read.mistake(
            "both VAULT_CACERT and VAULT_AUTH_CERT_CM are set",
            "keep one: a file, or a ConfigMap with the key cert",
        )
    if config_map:
        host = read.text("KUBERNETES_SERVICE_HOST")
        if host is None:
            read.mistake(
                "VAULT_AUTH_CERT_CM needs a pod, and KUBERNETES_SERVICE_HOST is not set",
                "run it in a pod, or give the CA as a file in VAULT_CACERT",
            )
        host = f"[{host}]" if host and ":" in host else host
        name, _, namespace = config_map.partition(".")
        return CaConfigMap(
            name=name,
            namespace=namespace or None,
            api_server=f"{host}:{read.text('KUBERNETES_SERVICE_PORT', '443')}",
            service_account=read.path("KUBERNETES_SERVICE_ACCOUNT_DIR", _SERVICE_ACCOUNT)
            or _SERVICE_ACCOUNT,
        )
    return CaFile(file) if file else None


def _login(read: _Reader) -> Login:
    method = read.choice(
        "VAULT_AUTH_METHOD",
        "kubernetes",
        {name: name for name in ("kubernetes", "approle", "token")},
    )
    if method == "token":
        path = read.required("VAULT_TOKEN_PATH", "name the file that holds the token")
        return TokenFileLogin(Path(path))
    mount = mount_of(read.text("VAULT_AUTH_PATH", method) or method)
    if not mount:
        read.mistake("VAULT_AUTH_PATH names no mount", "e.g. VAULT_AUTH_PATH=auth/kubernetes/login")
    if method == "approle":
        hint = "name the file that holds it"
        return AppRoleLogin(
            mount=mount,
            role_id_path=Path(read.required("VAULT_ROLE_ID_PATH", hint)),
            secret_id_path=Path(read.required("VAULT_SECRET_ID_PATH", hint)),
        )
    default = _SERVICE_ACCOUNT / "token"
    return KubernetesLogin(
        mount=mount,
        role=read.required("VAULT_ROLE", "name the role, e.g. VAULT_ROLE=istiod"),
        jwt_path=read.path("VAULT_AUTH_JWT_PATH", default) or default,
        audience=read.text("VAULT_AUTH_AUDIENCE"),
    )


def _kv_path(read: _Reader) -> str:
    hint = "write <mount>/<path>, e.g. VAULT_KV_PATH=asm-c1/istiod"
    path = read.required("VAULT_KV_PATH", hint).strip("/").removeprefix("v1/")
    if path and "/" not in path:
        read.mistake(f"VAULT_KV_PATH is {path!r}, without a path inside the mount", hint)
    return path


def _names(read: _Reader) -> FileNames:
    default = FileNames()
    extra: list[tuple[str, str]] = []
    for item in (read.text("EXTRA_FILES") or "").split(","):
        key, _, name = (part.strip() for part in item.partition("="))
        if key and name:
            extra.append((key, name))
        elif item.strip():
            read.mistake(f"EXTRA_FILES has {item.strip()!r}", "write key=file,key=file")
    names = FileNames(
        client_cert=read.text("CLIENT_CERT_FILENAME") or default.client_cert,
        client_key=read.text("CLIENT_KEY_FILENAME") or default.client_key,
        server_cert=read.text("SERVER_CERT_FILENAME") or default.server_cert,
        pin=read.text("PIN_FILENAME") or default.pin,
        extra=tuple(extra),
    )
    by_key = names.by_key()
    if len(by_key) != 4 + len(extra):
        read.mistake("EXTRA_FILES names a key twice", "each KV key goes to one file")
    used = list(by_key.values())
    for name in used:
        if "/" in name or name.startswith(".") or name == MANIFEST or used.count(name) > 1:
            read.mistake(
                f"the file name {name!r} cannot be used",
                f"use distinct plain names, without / or a leading dot, other than {MANIFEST}",
            )
    return names


def _permissions(read: _Reader) -> Permissions:
    mode = read.choice("OUTPUT_MODE", "0400", _FILE_MODES)

    def owner(text: str) -> tuple[int | None, int | None] | None:
        match = re.fullmatch(r"([0-9]{0,10}):([0-9]{0,10})", text)
        if not match:
            return None
        uid, gid = match.groups()
        return (int(uid) if uid else None, int(gid) if gid else None)

    nobody: tuple[int | None, int | None] = (None, None)
    uid, gid = read.parsed("OUTPUT_OWNER", nobody, owner, "write uid:gid, e.g. :1337")
    return Permissions(mode, uid, gid)


def _policies(read: _Reader) -> Mapping[Cause, Policy]:
    return {
        cause: read.parsed(
            f"ON_{cause.name}",
            DEFAULT_POLICIES[cause],
            parse_policy,
            "use keep, wipe, or grace=<duration> such as grace=15m",
        )
        for cause in Cause
    }


def _http_address(text: str) -> HttpAddress | None:
    host, _, port = text.rpartition(":")
    if not host or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:  # noqa: PLR2004 - the last TCP port
        return None
    return HttpAddress(host.strip("[]"), int(port))


def _acknowledgement(read: _Reader) -> Acknowledgement | None:
    path = read.path("HSM_PLUGIN_SOCKET")
    timeout = read.duration("HSM_PLUGIN_TIMEOUT", 10.0)
    trial = read.choice("TRIAL_LOGIN", "auto", {mode.value: mode for mode in TrialMode})
    if timeout > _LONGEST_PLUGIN_TIMEOUT_SECONDS:
        read.mistake(
            "HSM_PLUGIN_TIMEOUT is more than 30s", "a plugin that takes longer is asked again"
        )
    if trial is TrialMode.REQUIRED and not path:
        read.mistake(
            "TRIAL_LOGIN is required, and HSM_PLUGIN_SOCKET is not set",
            "name the plugin's socket: the plugin makes the trial",
        )
    return Acknowledgement(path, timeout, trial) if path else None
