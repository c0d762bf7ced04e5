"""Settings of `serve`, read once from flags and environment and validated at once."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hsm_plugin import token_reference
from hsm_plugin.audit_log import AuditSettings, OnFailure
from hsm_plugin.errors import BadRequestError, ConfigError
from hsm_plugin.gcm_iv import GcmIv
from hsm_plugin.http_listener import HttpAddress
from hsm_plugin.key_reference import KeyUse, key_id
from hsm_plugin.keys import (
    CBC_KEK_LABEL,
    CBC_MAC_LABEL,
    KEK_LABEL,
    CbcLabels,
    KekCipher,
    checked_id,
)
from hsm_plugin.listen_settings import ListenSettings

DEFAULT_SOCKET = "/var/run/hsm-socket/.sock"
MESH_GID = 1337
"""Group of the mesh's containers, who share the socket."""

DEFAULT_HANG_SECONDS = 10.0
"""How long one call of the PKCS#11 module may last before its process is replaced."""

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod finds the token of its service account."""

DEFAULT_RETURN_SECONDS = 30.0

ON = "on"
ON_OFF = (ON, "off")

_MAX_SOCKET_BYTES = 107
"""sun_path less its final NUL (unix(7))."""

_ADDRESS = re.compile(r"(?:\[(?P<ipv6>[0-9a-fA-F:.]+)\]|(?P<host>[^\[\]:\s]*)):(?P<port>\d{1,5})")
_MAX_PORT = 65535


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """What the server needs to know."""

    socket: Path
    module: str
    token_label: str
    """A label or a PKCS#11 URI, or several with a comma between, the preferred one first."""
    pin_file: Path
    state_dir: Path
    sessions: int
    queue_limit: int
    drain_seconds: float
    hang_seconds: float
    kubernetes_kek_id: str
    """Empty: Kubernetes' KMS services are off."""
    listen: ListenSettings
    log_as_json: bool
    kek_id: str
    """A KEK that is looked for at the start; empty: none."""
    auto_create: bool
    """That KEK is made when it is not there."""
    return_seconds: float
    """How often a better token of the list is looked for while a stand-by is in use."""
    kek_cipher: KekCipher
    """Of the KEKs and DEKs that are made; blobs of both ciphers are opened."""
    cbc_labels: CbcLabels
    gcm_iv: GcmIv
    dek_stock: bool = True
    """DEKs are made ahead for KEKs that are asked for again and again."""
    metrics_listen: HttpAddress | None = None
    """None: no HTTP."""
    watched_certificates: tuple[Path, ...] = ()
    audit: AuditSettings | None = None
    """None: the use of keys is not recorded."""


def environment() -> Mapping[str, str]:
    """Return the process's environment; the flags of the command line take their defaults here."""
    return os.environ


def api_server() -> str:
    """Return host and port of the Kubernetes API as a pod is told them."""
    host = os.environ.get("KUBERNETES_SERVICE_HOST", "kubernetes.default.svc")
    port = os.environ.get("KUBERNETES_SERVICE_PORT_HTTPS", "443")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def serve_config(
    *,
    socket: str,
    module: str,
    token_label: str,
    pin_file: str,
    state_dir: str,
    sessions: int,
    queue_limit: int,
    drain_seconds: float,
    hang_seconds: float = DEFAULT_HANG_SECONDS,
    kubernetes_kek_id: str = "",
    listen: ListenSettings | None = None,
    log_as_json: bool = False,
    kek_id: str = "",
    auto_create: bool = False,
    return_seconds: float = DEFAULT_RETURN_SECONDS,
    algorithm: str = KekCipher.GCM.value,
    key_label: str = CBC_KEK_LABEL,
    hmac_label: str = CBC_MAC_LABEL,
    gcm_iv: str = GcmIv.AUTO.value,
    dek_stock: str = ON,
    metrics_listen: str = "",
    watched_certificates: str = "",
    audit: AuditSettings | None = None,
) -> ServeConfig:
    """Return the settings, or raise one ConfigError that names every fault."""
    faults = [
        f"{name} is not set"
        for name, value in (
            ("P11_LIB (--p11-lib)", module),
            ("P11_TOKEN (--p11-label)", token_label),
            ("P11_PIN_FILE (--p11-pin-file)", pin_file),
            ("SOCKET (--socket)", socket),
        )
        if not value
    ]
    if module and not os.path.isfile(module):  # noqa: PTH113 - Path raises on a name too long
        faults.append(f"the PKCS#11 module {module} (P11_LIB) does not exist")
    ways = listen or ListenSettings()
    folder = Path(socket).absolute().parent
    if socket:
        faults += _socket_faults(Path(socket).absolute(), is_used=ways.unix or not state_dir)
    kept = Path(state_dir) if state_dir else folder
    if state_dir and not (os.path.isdir(kept) and os.access(kept, os.W_OK)):  # noqa: PTH112 - as above
        faults.append(f"the state folder {kept} (HSM_PLUGIN_STATE_DIR) cannot be written")
    if not 1 <= sessions <= 256:  # noqa: PLR2004 - said in the message
        faults.append("--sessions must be 1 to 256")
    if not 1 <= queue_limit <= 100_000:  # noqa: PLR2004 - said in the message
        faults.append("--queue-limit must be 1 to 100000")
    if not 0.5 <= hang_seconds <= 600:  # noqa: PLR2004 - said in the message
        faults.append("--hang-limit must be 500ms to 10m")
    faults += _kek_faults("--kms-kek-id", kubernetes_kek_id)
    faults += _kek_faults("--kek-id", kek_id)
    if auto_create and not kek_id:
        faults.append("--auto-create needs --kek-id: else each start would make another KEK")
    if not 0.5 <= return_seconds <= 3600:  # noqa: PLR2004 - said in the message
        faults.append("--return-after must be 500ms to 60m")
    faults += _token_faults(token_label)
    faults += _cipher_faults(algorithm, key_label, hmac_label) + _iv_faults(gcm_iv)
    faults += _stock_faults(dek_stock) + _metrics_faults(metrics_listen)
    if faults:
        raise ConfigError("; ".join(faults), hint="see `hsm-plugin serve --help`")
    return ServeConfig(
        socket=Path(socket).absolute(),
        module=module,
        token_label=token_label,
        pin_file=Path(pin_file),
        state_dir=kept,
        sessions=sessions,
        queue_limit=queue_limit,
        drain_seconds=drain_seconds,
        hang_seconds=hang_seconds,
        kubernetes_kek_id=key_id(kubernetes_kek_id, KeyUse.KEK).decode(),
        listen=ways,
        log_as_json=log_as_json,
        kek_id=key_id(kek_id, KeyUse.KEK).decode(),
        auto_create=auto_create,
        return_seconds=return_seconds,
        kek_cipher=KekCipher(algorithm),
        cbc_labels=CbcLabels(key_label, hmac_label),
        gcm_iv=GcmIv(gcm_iv),
        dek_stock=dek_stock == ON,
        metrics_listen=_http_address(metrics_listen),
        audit=audit,
        watched_certificates=tuple(map(Path, filter(None, watched_certificates.split(":")))),
    )


def _socket_faults(path: Path, *, is_used: bool) -> list[str]:
    """`is_used`: the socket, or its folder for the state, is needed."""
    faults = []
    if is_used and not os.path.isdir(path.parent):  # noqa: PTH112 - as above
        faults.append(f"the socket's folder {path.parent} (SOCKET) does not exist")
    if len(os.fsencode(path)) > _MAX_SOCKET_BYTES:
        faults.append(f"the socket's path (SOCKET) is longer than {_MAX_SOCKET_BYTES} bytes")
    return faults


def _cipher_faults(algorithm: str, key_label: str, hmac_label: str) -> list[str]:
    known = [cipher.value for cipher in KekCipher]
    faults = []
    if algorithm not in known:
        faults.append(f"--algorithm must be {' or '.join(known)}")
    labels = {key_label, hmac_label}
    if len(labels - {"", KEK_LABEL}) < len((key_label, hmac_label)):
        faults.append(
            "--p11-key-label and --p11-hmac-label must be two labels, and none of them "
            f"{KEK_LABEL}, which KEKs for AES-GCM bear"
        )
    return faults


def _iv_faults(gcm_iv: str) -> list[str]:
    known = [entry.value for entry in GcmIv]
    return [] if gcm_iv in known else [f"--gcm-iv (P11_GCM_IV) must be {', '.join(known)}"]


def _stock_faults(dek_stock: str) -> list[str]:
    known = dek_stock in ON_OFF
    return [] if known else [f"--dek-stock (HSM_PLUGIN_DEK_STOCK) must be {' or '.join(ON_OFF)}"]


def _token_faults(tokens: str) -> list[str]:
    try:
        if tokens:
            token_reference.parse_list(tokens)
    except BadRequestError as error:
        return [f"P11_TOKEN (--p11-label): {error} ({error.hint})"]
    return []


def audit_settings(
    path: str,
    on_failure: str,
    max_mib: int,
    checkpoint_entries: int,
    checkpoint_seconds: float,
) -> AuditSettings | None:
    """Return how the audit log is kept, None without a path; ConfigError for what cannot work."""
    if not path:
        return None
    faults = []
    if on_failure not in {entry.value for entry in OnFailure}:
        faults.append("AUDIT_ON_FAILURE (--audit-on-failure) must be refuse or drop")
    if not 1 <= max_mib <= 4096:  # noqa: PLR2004 - said in the message
        faults.append("--audit-max-mib must be 1 to 4096")
    if not 1 <= checkpoint_entries <= 1_000_000:  # noqa: PLR2004 - said in the message
        faults.append("--audit-checkpoint-entries must be 1 to 1000000")
    if not 1 <= checkpoint_seconds <= 86_400:  # noqa: PLR2004 - said in the message
        faults.append("--audit-checkpoint-every must be 1s to 24h")
    if faults:
        raise ConfigError("; ".join(faults), hint="see `hsm-plugin serve --help`")
    return AuditSettings(
        path=Path(path).absolute(),
        max_bytes=max_mib << 20,
        on_failure=OnFailure(on_failure),
        checkpoint_entries=checkpoint_entries,
        checkpoint_seconds=checkpoint_seconds,
    )


def _metrics_faults(text: str) -> list[str]:
    if text in {"", "off"} or _http_address(text):
        return []
    return ["METRICS_LISTEN (--metrics-listen) is not HOST:PORT, such as 127.0.0.1:9464"]


def _http_address(text: str) -> HttpAddress | None:
    """Return the address of `HOST:PORT`, `[IPV6]:PORT` or `:PORT`; None for anything else."""
    match = _ADDRESS.fullmatch(text)
    if match is None or not int(match["port"]) <= _MAX_PORT:
        return None
    return HttpAddress(host=match["ipv6"] or match["host"] or "", port=int(match["port"]))


def _kek_faults(flag: str, kek_id: str) -> list[str]:
    try:
        if kek_id:
            checked_id(key_id(kek_id, KeyUse.KEK), "KEK id")
    except BadRequestError as error:
        return [f"{flag}: {error}"]
    return []
