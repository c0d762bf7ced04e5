"""Where the server is reached: directly on the Unix socket, or through a front that asks who comes.

The front costs each call something (bench/plugin_front.py), so there is one only when who comes
matters: with an allow-list, or with a TCP port.
"""

import socket
from pathlib import Path

import grpc

from hsm_plugin import socket_file
from hsm_plugin.callers import Callers
from hsm_plugin.config import MESH_GID, ServeConfig
from hsm_plugin.errors import ConfigError
from hsm_plugin.front_process import FrontProcess, Listeners
from hsm_plugin.front_settings import AllowList
from hsm_plugin.listen_settings import TcpSettings
from hsm_plugin.log import event

_BACKLOG = 1024


def front_of(config: ServeConfig) -> FrontProcess | None:
    """Return the front when the settings need one; it does not run yet."""
    listen = config.listen
    if listen.allow is None and listen.tcp is None:
        return None
    tls = listen.tcp.tls if listen.tcp else None
    allow = listen.allow or AllowList(everyone=True)
    return FrontProcess(allow, tls, as_json=config.log_as_json)


def callers_of(config: ServeConfig, front: FrontProcess | None) -> Callers:
    """Return who tells the callers that this front lets in apart."""
    if front is None:
        return Callers()
    return Callers(front.tag, config.listen.tcp.tls.allow if config.listen.tcp else ())


async def start(server: grpc.aio.Server, config: ServeConfig, front: FrontProcess | None) -> None:
    """Return when clients can connect; ConfigError when that cannot be."""
    if front is None:
        _listen_directly(server, config.socket)
        await server.start()
    else:
        listeners = _bind(config)
        try:
            front.put_behind(server, config.state_dir)
            await server.start()
            await front.start(listeners)
        except BaseException:
            await server.stop(0)
            listeners.close()
            await close(config, front)
            raise
    if config.listen.unix:
        event("server.serving", f"Serving on socket: {config.socket}")


async def close(config: ServeConfig, front: FrontProcess | None) -> None:
    """Return when nothing listens any more."""
    if front is not None:
        await front.close()
    if config.listen.unix:
        config.socket.unlink(missing_ok=True)


def _listen_directly(server: grpc.aio.Server, path: Path) -> None:
    socket_file.claim(path)
    try:
        with socket_file.narrow_umask():
            server.add_insecure_port(f"unix:{path}")
    except RuntimeError:
        raise _no_socket(path) from None
    _share(path)


def _bind(config: ServeConfig) -> Listeners:
    unix = _bind_unix(config.socket) if config.listen.unix else None
    try:
        tcp = _bind_tcp(config.listen.tcp) if config.listen.tcp else None
    except BaseException:
        if unix is not None:
            unix.close()
            config.socket.unlink(missing_ok=True)
        raise
    return Listeners(unix, tcp)


def _bind_unix(path: Path) -> socket.socket:
    socket_file.claim(path)
    bound = socket.socket(socket.AF_UNIX)
    try:
        with socket_file.narrow_umask():
            bound.bind(str(path))
            bound.listen(_BACKLOG)
    except OSError:
        bound.close()
        raise _no_socket(path) from None
    _share(path)
    return bound


def _no_socket(path: Path) -> ConfigError:
    return ConfigError(
        f"the socket {path} cannot be made",
        hint="choose a SOCKET in a folder that this process may write",
    )


def _share(path: Path) -> None:
    if not socket_file.share_with_group(path, MESH_GID):
        event(
            "socket.group",
            f"The socket keeps this process's group: it may not be given to {MESH_GID}",
        )
    event("server.listening", f"KMS Plugin Listening on : {path}")


def _bind_tcp(settings: TcpSettings) -> socket.socket:
    host, port = settings.host, settings.port
    try:
        bound = socket.create_server(
            (host, port),
            family=socket.AF_INET6 if ":" in host else socket.AF_INET,
            backlog=_BACKLOG,
        )
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host} port {port}: {error.strerror}",
            hint="see --host and --port; is another process there?",
        ) from None
    event("server.listening", f"KMS Plugin Listening on : {host}:{bound.getsockname()[1]}")
    return bound
