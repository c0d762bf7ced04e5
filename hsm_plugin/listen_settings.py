"""The settings of who may reach the server and how, read from flags and validated at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hsm_plugin.errors import ConfigError
from hsm_plugin.front_settings import AllowList, TlsSettings

DEFAULT_HOST = "0.0.0.0"  # noqa: S104 - the reference's; the port is off by default
DEFAULT_PORT = 31400

_EVERYONE = "any"
_MAX_ID = (1 << 32) - 2
_MAX_ENTRIES = 256


@dataclass(frozen=True, slots=True)
class TcpSettings:
    """A port for remote clients."""

    host: str
    port: int
    tls: TlsSettings


@dataclass(frozen=True, slots=True)
class ListenSettings:
    """The ways in."""

    unix: bool = True
    allow: AllowList | None = None
    """None: file permissions alone decide who may use the socket."""
    tcp: TcpSettings | None = None


def listen_settings(
    *,
    disable_socket: bool,
    allow_uids: str,
    allow_gids: str,
    enable_server: bool,
    host: str,
    port: int,
    tls_ca: str,
    tls_certificate: str,
    tls_key: str,
    tls_allow: Sequence[str],
) -> ListenSettings:
    """Return the settings, or raise one ConfigError that names every fault."""
    faults: list[str] = []
    allow = _allow_list(allow_uids, allow_gids, faults)
    named = tuple(entry for given in tls_allow for entry in given.split(",") if entry)
    files = {"--tls-ca": tls_ca, "--tls-certificate": tls_certificate, "--tls-key": tls_key}
    if enable_server:
        faults += [
            f"{flag} is not set, which --enable-server needs" for flag in files if not files[flag]
        ]
        if not named:
            faults.append("--tls-allow is not set: without it no client may use the port")
    elif named or any(files.values()):
        faults.append("the --tls- flags are for the port, which --enable-server opens")
    if disable_socket and not enable_server:
        faults.append("--disable-socket leaves no way in without --enable-server")
    if disable_socket and allow is not None:
        faults.append("--allow-uid and --allow-gid are for the socket, which is disabled")
    if not 0 <= port <= 65535:  # noqa: PLR2004 - said in the message
        faults.append("--port must be 0 to 65535")
    if len(named) > _MAX_ENTRIES:
        faults.append(f"--tls-allow names more than {_MAX_ENTRIES} clients")
    if faults:
        raise ConfigError("; ".join(faults), hint="see `hsm-plugin serve --help`")
    tls = TlsSettings(Path(tls_ca), Path(tls_certificate), Path(tls_key), named)
    tcp = TcpSettings(host, port, tls) if enable_server else None
    return ListenSettings(unix=not disable_socket, allow=allow, tcp=tcp)


def _allow_list(uids: str, gids: str, faults: list[str]) -> AllowList | None:
    if not uids and not gids:
        return None
    if _EVERYONE in (uids, gids):
        return AllowList(everyone=True)
    return AllowList(
        _ids(uids, "--allow-uid (ALLOW_UIDS)", faults),
        _ids(gids, "--allow-gid (ALLOW_GIDS)", faults),
    )


def _ids(text: str, name: str, faults: list[str]) -> frozenset[int]:
    parts = [part.strip() for part in text.split(",")] if text else []
    if not all(part.isascii() and part.isdecimal() and int(part) <= _MAX_ID for part in parts):
        faults.append(f"{name} is neither `{_EVERYONE}` nor numbers such as 1337,0")
        return frozenset()
    if len(parts) > _MAX_ENTRIES:
        faults.append(f"{name} names more than {_MAX_ENTRIES}")
    return frozenset(map(int, parts))
