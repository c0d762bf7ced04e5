"""The gRPC server on the socket: edges, health, reflection, and an orderly end."""

import asyncio
import logging
import signal
import time
from collections.abc import Callable
from typing import TypeVar

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from hsm_plugin import socket_file
from hsm_plugin.config import MESH_GID, ServeConfig
from hsm_plugin.connection import Connection, TokenState
from hsm_plugin.errors import ConfigError, HsmPluginError
from hsm_plugin.executor import Executor
from hsm_plugin.log import event
from hsm_plugin.pin_file import read_pin
from hsm_plugin.pin_guard import PinGuard
from hsm_plugin.pkcs11_store import Pkcs11Store
from hsm_plugin.service import KeyManagement, utc_now
from hsm_plugin.signing_service import Signing
from hsm_plugin.status import details_of, status_of
from istio_hsm_proto import kms_istio_v1_pb2 as kms
from istio_hsm_proto import kms_istio_v1_pb2_grpc as kms_grpc
from istio_hsm_proto import signing_v1_pb2 as signing
from istio_hsm_proto import signing_v1_pb2_grpc as signing_grpc

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")

MAX_MESSAGE_BYTES = 2 << 20
_MAX_SECONDS = 60.0
"""The deadline of a call that has none."""
_MAX_KEKS_LOGGED = 64
_SERVICES = (
    kms.DESCRIPTOR.services_by_name["KeyManagementService"].full_name,
    signing.DESCRIPTOR.services_by_name["SigningService"].full_name,
)
_HEALTH = {
    TokenState.USABLE: health_pb2.HealthCheckResponse.SERVING,
    TokenState.LOST: health_pb2.HealthCheckResponse.NOT_SERVING,
}
_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.max_concurrent_streams", 1024),
    ("grpc.so_reuseport", 0),
)


class Edge:
    """Runs a blocking call for one RPC and turns our errors into statuses."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    async def answer(
        self,
        context: grpc.aio.ServicerContext[_Request, _Response],
        call: Callable[[_Request], _Response],
        request: _Request,
    ) -> _Response:
        """Return the response, or abort with the status of the error."""
        # None without a deadline, whatever the stubs' types say.
        remaining: float | None = context.time_remaining()
        allowed = _MAX_SECONDS if remaining is None else min(remaining, _MAX_SECONDS)
        deadline = time.monotonic() + allowed
        try:
            return await self._executor.run(deadline, call, request)
        except HsmPluginError as error:
            status = status_of(error)
            event("rpc.refused", str(error), call=call.__name__, status=status.name)
            hint = (("hint-bin", error.hint.encode()),) if error.hint else ()
            await context.abort(status, details_of(error), hint)
        except Exception as error:  # noqa: BLE001 - the edge: nothing may end the server
            event(
                "rpc.failed",
                "A call failed in a way that was not foreseen",
                level=logging.ERROR,
                call=call.__name__,
                error=type(error).__name__,
            )
            await context.abort(grpc.StatusCode.INTERNAL, "internal error; see the plugin's log")


class _KeyManagementServicer(kms_grpc.KeyManagementServiceServicer):
    def __init__(self, edge: Edge, api: KeyManagement) -> None:
        self._edge = edge
        self._api = api
        self._keks_logged: set[bytes] = set()

    async def GenerateKEK(
        self,
        request: kms.GenerateKEKRequest,
        context: grpc.aio.ServicerContext[kms.GenerateKEKRequest, kms.GenerateKEKResponse],
    ) -> kms.GenerateKEKResponse:
        response = await self._edge.answer(context, self._api.generate_kek, request)
        self._log_kek(response.kek_kid)
        return response

    async def GenerateDEK(
        self,
        request: kms.GenerateDEKRequest,
        context: grpc.aio.ServicerContext[kms.GenerateDEKRequest, kms.GenerateDEKResponse],
    ) -> kms.GenerateDEKResponse:
        response = await self._edge.answer(context, self._api.generate_dek, request)
        self._log_kek(request.kek_kid)
        return response

    async def GenerateSKey(
        self,
        request: kms.GenerateSKeyRequest,
        context: grpc.aio.ServicerContext[kms.GenerateSKeyRequest, kms.GenerateSKeyResponse],
    ) -> kms.GenerateSKeyResponse:
        return await self._edge.answer(context, self._api.generate_skey, request)

    async def LoadSKey(
        self,
        request: kms.LoadSKeyRequest,
        context: grpc.aio.ServicerContext[kms.LoadSKeyRequest, kms.LoadSKeyResponse],
    ) -> kms.LoadSKeyResponse:
        response = await self._edge.answer(context, self._api.load_skey, request)
        self._log_kek(request.kek_kid)
        return response

    async def AuthenticatedEncrypt(
        self,
        request: kms.AuthenticatedEncryptRequest,
        context: grpc.aio.ServicerContext[
            kms.AuthenticatedEncryptRequest, kms.AuthenticatedEncryptResponse
        ],
    ) -> kms.AuthenticatedEncryptResponse:
        return await self._edge.answer(context, self._api.authenticated_encrypt, request)

    async def AuthenticatedDecrypt(
        self,
        request: kms.AuthenticatedDecryptRequest,
        context: grpc.aio.ServicerContext[
            kms.AuthenticatedDecryptRequest, kms.AuthenticatedDecryptResponse
        ],
    ) -> kms.AuthenticatedDecryptResponse:
        return await self._edge.answer(context, self._api.authenticated_decrypt, request)

    async def ImportCACert(
        self,
        request: kms.ImportCACertRequest,
        context: grpc.aio.ServicerContext[kms.ImportCACertRequest, kms.ImportCACertResponse],
    ) -> kms.ImportCACertResponse:
        return await self._edge.answer(context, self._api.import_ca_cert, request)

    async def VerifyCertChain(
        self,
        request: kms.VerifyCertChainRequest,
        context: grpc.aio.ServicerContext[kms.VerifyCertChainRequest, kms.VerifyCertChainResponse],
    ) -> kms.VerifyCertChainResponse:
        return await self._edge.answer(context, self._api.verify_cert_chain, request)

    def _log_kek(self, kek_id: bytes) -> None:
        """Log a KEK at its first use, as the reference does and operators look for."""
        if kek_id not in self._keks_logged and len(self._keks_logged) < _MAX_KEKS_LOGGED:
            self._keks_logged.add(kek_id)
            event("kek.used", f"KEK ID: {kek_id.decode()}")


class _SigningServicer(signing_grpc.SigningServiceServicer):
    def __init__(self, edge: Edge, api: Signing) -> None:
        self._edge = edge
        self._api = api

    async def GenerateSigningKey(
        self,
        request: signing.GenerateSigningKeyRequest,
        context: grpc.aio.ServicerContext[
            signing.GenerateSigningKeyRequest, signing.GenerateSigningKeyResponse
        ],
    ) -> signing.GenerateSigningKeyResponse:
        return await self._edge.answer(context, self._api.generate_signing_key, request)

    async def GetPublicKey(
        self,
        request: signing.GetPublicKeyRequest,
        context: grpc.aio.ServicerContext[
            signing.GetPublicKeyRequest, signing.GetPublicKeyResponse
        ],
    ) -> signing.GetPublicKeyResponse:
        return await self._edge.answer(context, self._api.get_public_key, request)

    async def Sign(
        self,
        request: signing.SignRequest,
        context: grpc.aio.ServicerContext[signing.SignRequest, signing.SignResponse],
    ) -> signing.SignResponse:
        return await self._edge.answer(context, self._api.sign, request)


async def serve(config: ServeConfig) -> None:
    """Serve until SIGTERM or SIGINT, then drain and leave no socket behind."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    store = Pkcs11Store(
        config.module,
        config.token_label,
        lambda: read_pin(config.pin_file),
        PinGuard(config.state_dir / "pin-guard.json"),
    )
    executor = Executor(workers=config.sessions, queue_limit=config.queue_limit)
    health_servicer = health.aio.HealthServicer()
    server = _server(store, Edge(executor), health_servicer)
    _listen(server, config)

    async def on_change(state: TokenState) -> None:
        for name in ("", *_SERVICES):
            await health_servicer.set(name, _HEALTH[state])

    await on_change(TokenState.LOST)
    await server.start()
    event("server.serving", f"Serving on socket: {config.socket}")
    connection = asyncio.create_task(Connection(store, config.pin_file, on_change).run())
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({connection, stopped}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        event("server.draining", "Draining: calls under way end, new ones are refused")
        connection.cancel()
        stopped.cancel()
        await health_servicer.enter_graceful_shutdown()
        await server.stop(config.drain_seconds)
        await asyncio.gather(connection, stopped, return_exceptions=True)
        await asyncio.to_thread(executor.close)
        await asyncio.to_thread(store.close)
        config.socket.unlink(missing_ok=True)
        event("server.stopped", "Stopped")
    if not connection.cancelled():
        connection.result()  # raises what ended the loop


def _server(
    store: Pkcs11Store, edge: Edge, health_servicer: health.aio.HealthServicer
) -> grpc.aio.Server:
    server = grpc.aio.server(options=_OPTIONS)
    kms_grpc.add_KeyManagementServiceServicer_to_server(
        _KeyManagementServicer(edge, KeyManagement(store, utc_now)), server
    )
    signing_grpc.add_SigningServiceServicer_to_server(
        _SigningServicer(edge, Signing(store)), server
    )
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    reflection.enable_server_reflection(
        (*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server
    )
    return server


def _listen(server: grpc.aio.Server, config: ServeConfig) -> None:
    socket_file.claim(config.socket)
    try:
        with socket_file.narrow_umask():
            server.add_insecure_port(f"unix:{config.socket}")
    except RuntimeError:
        raise ConfigError(
            f"the socket {config.socket} cannot be made",
            hint="choose a SOCKET in a folder that this process may write",
        ) from None
    if not socket_file.share_with_group(config.socket, MESH_GID):
        event(
            "socket.group",
            f"The socket keeps this process's group: it may not be given to {MESH_GID}",
        )
    event("server.listening", f"KMS Plugin Listening on : {config.socket}")
